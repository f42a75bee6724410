"""
The commands of ``sluicegate`` that call the REST API of a control plane.

They import nothing of the control plane, and no store. ``app`` declares them, and the other modules do their work.
"""
