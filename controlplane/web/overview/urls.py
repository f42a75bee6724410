"""The addresses of a new installation's pages, below /admin/."""

from django.contrib import admin
from django.urls import path

from controlplane.web.overview import hands, views

urlpatterns = [
    path("needs-a-hand/", admin.site.admin_view(hands.hands_view), name="needs-a-hand"),
    path("needs-a-hand/answer/", admin.site.admin_view(hands.answer_view), name="answer-hand"),
    path("first-account/", views.first_account, name="first-account"),
    path("first-steps/", admin.site.admin_view(views.first_steps), name="first-steps"),
    path("first-steps/state/", admin.site.admin_view(views.first_steps_state), name="first-steps-state"),
    path("first-steps/send/", admin.site.admin_view(views.send_first_request), name="first-steps-send"),
]
