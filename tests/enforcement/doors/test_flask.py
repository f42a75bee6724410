"""The Flask door: a decorator in a real application, sync and async, deciding with a real store."""

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Blueprint, Flask, Response, request, stream_with_context
from flask.views import MethodView, View
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from enforcement import Denied, Limit, Limiter
from enforcement.doors.flask import check, exempt, get_limiter, install, limited
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import InvalidLimit
from enforcement.model.matching import Match
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
ONCE = Limit(name="once", algorithm="fixed_window", quota=1, window_seconds=3600)

Make = Callable[..., Flask]


@pytest.fixture
def make(store: ValkeyServer) -> Iterator[Make]:
    """Make an application with the door installed."""
    limiter = Limiter(store.url, timeout=1.0)

    def application(default: Any = None, **options: Any) -> Flask:
        app = Flask(__name__)
        app.config["SLUICEGATE"] = options
        install(app, limiter, default=default)
        return app

    yield application
    limiter.close()


def ok(**_: Any) -> str:
    return "ok"


async def ok_awaited(**_: Any) -> str:
    return "ok"


def statuses(app: Flask, *paths: str, **options: Any) -> list[int]:
    return [app.test_client().get(path, **options).status_code for path in paths]


def test_limit_in_code_denies_and_tells(make: Make) -> None:
    """A denial has the body and the fields of every other door, and the view is not run."""
    app, ran = make(), []

    @app.get("/a")
    @limited(PER_HOUR, key="ip")
    def view() -> str:
        ran.append(1)
        return "a"

    first, _, denied = [app.test_client().get("/a") for _ in range(3)]
    assert (first.status_code, first.headers["RateLimit-Policy"]) == (200, '"per-hour";q=2;w=3600')
    assert first.headers["RateLimit"].startswith('"per-hour";r=1;t=')
    assert (denied.status_code, denied.headers["Content-Type"]) == (429, "application/problem+json")
    assert denied.headers.getlist("RateLimit")[0].startswith('"per-hour";r=0;t=')
    assert len(denied.headers.getlist("RateLimit")) == 1
    assert 1 <= int(denied.headers["Retry-After"]) <= 3600
    assert denied.json["violated-policies"] == ["per-hour"]
    assert len(ran) == 2


def test_decorated_view_stays_what_it_was() -> None:
    """Flask names its endpoint after the view."""
    assert limited("1/s", key="ip")(ok).__name__ == "ok"


def test_asynchronous_view_is_limited(make: Make) -> None:
    """Flask runs it in a loop of its own; the decision is made before."""
    app = make()
    app.get("/a")(limited(PER_HOUR, key="ip")(ok_awaited))

    assert statuses(app, "/a", "/a", "/a") == [200, 200, 429]


def test_views_count_apart_unless_they_share_a_scope(make: Make) -> None:
    """One name in several places is one limit."""
    app = make()

    def other() -> str:
        return "other"

    app.get("/a")(limited(ONCE, key="ip")(ok))
    app.get("/b")(limited(ONCE, key="ip")(other))
    app.get("/c", endpoint="c")(limited(ONCE, key="ip", scope="shared")(ok))
    app.get("/d", endpoint="d")(limited(ONCE, key="ip", scope="shared")(other))

    assert statuses(app, "/a", "/b", "/c", "/d", "/a") == [200, 200, 200, 429, 429]


def test_class_based_view_is_limited(make: Make) -> None:
    """By its decorators, or method by method."""
    app = make()

    class Whole(View):
        decorators = (limited(ONCE, key="ip"),)

        def dispatch_request(self) -> str:
            return "ok"

    class Parts(MethodView):
        @limited(ONCE, key="ip")
        def post(self) -> str:
            return "ok"

        def get(self) -> str:
            return "ok"

    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    app.add_url_rule("/parts", view_func=Parts.as_view("parts"))
    assert statuses(app, "/whole", "/whole", "/parts", "/parts") == [200, 429, 200, 200]
    assert [app.test_client().post("/parts").status_code for _ in range(2)] == [200, 429]


def test_client_beyond_its_own_limit_leaves_the_shared_one_alone(make: Make) -> None:
    """If its own limit stands above the shared one, as the page says."""
    app = make(TRUSTED_PROXIES=["127.0.0.0/8"])
    app.get("/a")(limited(ONCE, key="ip")(limited(PER_HOUR, key="all")(ok)))
    clients = ["192.0.2.1"] * 5 + ["192.0.2.2", "192.0.2.3"]
    found = [app.test_client().get("/a", headers={"X-Forwarded-For": client}).status_code for client in clients]

    assert found == [200, 429, 429, 429, 429, 200, 429]


class First(MethodView):
    def get(self) -> str:
        return "first"


class Second(View):
    decorators = (limited(ONCE, key="ip"),)

    def dispatch_request(self) -> str:
        return "second"


class Third(Second):
    """Has the same rule as its parent, for its own requests."""


@pytest.mark.parametrize("decorated", [True, False])
def test_class_based_views_of_one_module_count_apart(make: Make, decorated: bool) -> None:
    """What as_view() returns has the same full name for all of them."""
    app = make(None if decorated else limited(ONCE, key="ip"))
    rule = limited(ONCE, key="ip") if decorated else lambda view: view
    app.add_url_rule("/first", view_func=rule(First.as_view("first")))
    app.add_url_rule("/second", view_func=Second.as_view("second"))
    app.add_url_rule("/third", view_func=Third.as_view("third"))
    app.add_url_rule("/a", "a", rule(lambda: "a"))
    app.add_url_rule("/b", "b", rule(lambda: "b"))

    for path in ("/first", "/second", "/third", "/a", "/b"):
        assert statuses(app, path, path) == [200, 429]


def test_function_that_is_no_view_is_counted_whoever_calls_it(make: Make) -> None:
    """Its name does not depend on the view."""
    app = make()
    part = limited(ONCE, key="ip")(lambda: "part")
    app.add_url_rule("/a", "a", lambda: part())
    app.add_url_rule("/b", "b", lambda: part())

    assert statuses(app, "/a", "/b") == [200, 429]


def test_blueprint_is_no_view() -> None:
    """The limit would apply to nothing."""
    with pytest.raises(TypeError, match=r"view: must be a function or class, got <Blueprint 'shop'>\."):
        limited("1/s", key="ip")(Blueprint("shop", __name__))  # type: ignore[type-var]


@pytest.mark.parametrize("nested", [False, True])
def test_blueprint_is_exempt_from_the_default(make: Make, nested: bool) -> None:
    """So are those within it, if that is said. Limits of its own views hold."""
    app = make(default=limited(ONCE, key="ip", scope="default"))
    shop, within = Blueprint("shop", __name__), Blueprint("within", __name__)
    shop.get("/a", endpoint="a")(ok)
    shop.get("/own", endpoint="own")(limited(ONCE, key="ip", scope="own")(lambda: "own"))
    within.get("/b", endpoint="b")(ok)
    shop.register_blueprint(within)
    app.register_blueprint(exempt(shop, nested=nested))
    app.get("/c", endpoint="c")(ok)

    assert statuses(app, "/a", "/a", "/own", "/own", "/c", "/c") == [200, 200, 200, 429, 200, 429]
    assert statuses(app, "/b") == [200 if nested else 429]
    with pytest.raises(TypeError, match="nested: must be False for a view"):
        exempt(ok, nested=True)


def test_class_itself_is_no_view() -> None:
    """The error names what to do."""
    with pytest.raises(TypeError, match="put the rule into decorators of a class"):
        limited("1/s", key="ip")(View)


def test_limit_of_a_blueprint(make: Make) -> None:
    """A limited function before the requests of a blueprint is one limit on all of it."""
    app, shop = make(), Blueprint("shop", __name__)
    shop.before_request(limited(ONCE, key="ip", scope="shop")(lambda: None))
    shop.get("/a", endpoint="a")(ok)
    shop.get("/b", endpoint="b")(ok)
    app.register_blueprint(shop)
    app.get("/c")(ok)

    assert statuses(app, "/a", "/b", "/c") == [200, 429, 200]


def test_limit_of_the_whole_application_is_one_more(make: Make) -> None:
    """It counts the requests to all views together, and the default each by itself."""
    app = make(limited(ONCE, key="ip"))
    app.before_request(limited(PER_HOUR, key="ip", scope="app")(lambda: None))
    app.get("/a", endpoint="a")(ok)
    app.get("/own", endpoint="own")(limited("9/hour", key="ip", scope="own")(ok))

    assert statuses(app, "/a", "/own", "/own") == [200, 200, 429]


def test_default_limits_every_view_that_has_no_limit_of_its_own(make: Make) -> None:
    """Each view by itself. Views that are exempt, and paths that are, are free; so is what reaches no view."""
    app = make(limited(ONCE, key="ip"), EXEMPT=["/healthz"])

    def other() -> str:
        return "other"

    app.get("/a")(ok)
    app.get("/b")(other)
    app.get("/own", endpoint="own")(limited(PER_HOUR, key="ip", scope="own")(ok))
    app.get("/free", endpoint="free")(exempt(lambda: "free"))
    app.get("/healthz", endpoint="healthz")(ok)
    assert statuses(app, "/a", "/b", "/a", "/b") == [200, 200, 429, 429]
    assert statuses(app, "/own", "/own", "/own") == [200, 200, 429]
    assert statuses(app, "/free", "/free", "/healthz", "/healthz") == [200] * 4
    assert statuses(app, "/none", "/none") == [404, 404]


def test_default_limits_static_files_unless_they_are_exempt(make: Make) -> None:
    """Flask serves them by a view like any other."""
    app = make(limited(ONCE, key="ip"))
    assert statuses(app, "/static/none.css", "/static/none.css") == [404, 429]

    exempt(app.view_functions["static"])
    assert statuses(app, "/static/none.css") == [404]


def test_default_limits_the_methods_that_a_limit_leaves_out(make: Make) -> None:
    """A limit on one method does not free the others."""
    app = make(limited(PER_HOUR, key="ip"))
    app.route("/a", methods=["GET", "POST"])(limited(ONCE, key="ip", scope="own", methods=["GET"])(ok))

    assert statuses(app, "/a", "/a") == [200, 429]
    assert [app.test_client().post("/a").status_code for _ in range(3)] == [200, 200, 429]


def test_default_with_a_scope_is_one_limit_on_the_whole_application(make: Make) -> None:
    """What others call an application limit."""
    app = make(limited(ONCE, key="ip", scope="app"))
    app.get("/a", endpoint="a")(ok)
    app.get("/b", endpoint="b")(ok)

    assert statuses(app, "/a", "/b") == [200, 429]


def test_question_of_a_browser_before_its_request_is_not_charged(make: Make) -> None:
    """Flask itself answers OPTIONS, and runs no view for it."""
    app = make(limited(ONCE, key="ip"))
    app.get("/a")(ok)

    assert [app.test_client().options("/a").status_code for _ in range(3)] == [200] * 3
    assert statuses(app, "/a") == [200]


def test_default_that_is_no_rule_is_an_error() -> None:
    """A string would look as if it limited something."""
    with pytest.raises(TypeError, match=r"default: must be what limited\(\) or check\(\) returns, got '1/hour'"):
        install(Flask(__name__), default="1/hour")


@pytest.mark.parametrize("key", [lambda request: request.headers.get("X-Team")], ids=["function"])
def test_key_is_a_function_of_the_request(make: Make, key: Any) -> None:
    """Each value has its own count; None is no limit."""
    app = make()
    app.get("/a")(limited(ONCE, key=key)(ok))

    teams = ["red", "blue", "red", None, None]
    found = [app.test_client().get("/a", headers={"X-Team": team} if team else {}).status_code for team in teams]
    assert found == [200, 200, 429, 200, 200]


def test_key_may_be_a_number_a_uuid_or_awaited(make: Make) -> None:
    """These are what users are called by."""
    app = make()

    async def by_user(request: Any) -> Any:
        return {"7": 7, "u": UUID(int=7)}[request.args["user"]]

    app.get("/a")(limited(ONCE, key=by_user)(ok))
    assert statuses(app, "/a?user=7", "/a?user=u", "/a?user=7", "/a?user=u") == [200, 200, 429, 429]


def test_key_that_is_no_key_is_a_bug(make: Make) -> None:
    """It is not counted as somebody; the error names the argument."""
    app = make()
    app.testing = True
    app.get("/a")(limited(ONCE, key=lambda request: 1.5)(ok))

    with pytest.raises(TypeError, match="key: must be a string, an integer"):
        app.test_client().get("/a")


def test_key_too_long_to_be_counted_is_refused(make: Make) -> None:
    """It is the client's doing, so the answer is a problem of the client's."""
    app = make()
    app.get("/a")(limited(ONCE, key=lambda request: request.args["team"])(ok))

    answer = app.test_client().get("/a?team=" + "x" * 1024)
    assert (answer.status_code, answer.json["code"]) == (400, "key_too_long")


def test_cost_is_a_number_or_a_function_of_the_request(make: Make) -> None:
    """A dear request uses up more; one that can never pass says so."""
    app = make()
    app.get("/a")(limited(PER_HOUR, key="ip", costs=lambda request: int(request.args["n"]))(ok))

    answers = [app.test_client().get(f"/a?n={n}") for n in (2, 1, 3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[-1].json["code"] == "cost_exceeds_capacity"
    assert "Retry-After" not in answers[-1].headers


def test_only_these_methods_are_limited(make: Make) -> None:
    """A form is shown as often as one likes, and sent once."""
    app = make()
    app.route("/a", methods=["GET", "POST"])(limited(ONCE, key="ip", methods=["POST"])(ok))

    assert statuses(app, "/a", "/a") == [200, 200]
    assert [app.test_client().post("/a").status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limits": "often", "key": "ip"}, InvalidLimit),
        ({"limits": "1/hour", "key": "user"}, "key: must be 'ip', 'all' or a function of the request, got 'user'"),
        ({"limits": "1/hour", "key": "ip", "scope": "a:b"}, "scope: must be 1 to 255 characters"),
        ({"limits": "1/hour", "key": "ip", "costs": -1}, "costs: must be an integer from 0"),
        ({"limits": "1/hour", "key": "ip", "methods": ["post"]}, "methods: must be a list of at least one HTTP method"),
        ({"limits": "1/hour", "key": "ip", "methods": []}, "methods: must be a list of at least one HTTP method"),
    ],
)
def test_wrong_argument_is_an_error_when_the_view_is_decorated(arguments: dict[str, Any], error: Any) -> None:
    """The application does not start; the message names the argument."""
    with pytest.raises(ValueError, match=None if isinstance(error, type) else error) as raised:
        limited(**arguments)
    assert not isinstance(error, type) or raised.type is error


def test_wrong_configuration_is_an_error_when_it_is_installed() -> None:
    """The message names the key of the configuration."""
    app = Flask(__name__)
    app.config["SLUICEGATE"] = {"HEADER": "ietf"}

    with pytest.raises(ValueError, match=r"app\.config\['SLUICEGATE'\]\['HEADER'\]: unknown option"):
        install(app)


def test_installed_twice_is_an_error(make: Make) -> None:
    """Each request would be charged twice to the default."""
    with pytest.raises(ValueError, match="already installed"):
        install(make())


def test_limit_without_its_installation_is_an_error() -> None:
    """The request is not let through unlimited."""
    app = Flask(__name__)
    app.testing = True
    app.get("/a")(limited(ONCE, key="ip")(ok))

    with pytest.raises(RuntimeError, match=r"call enforcement\.doors\.flask\.install\(app\)"):
        app.test_client().get("/a")


def test_options_come_from_the_configuration(make: Make) -> None:
    """Presets of header fields, and proxies whose word counts for the address."""
    app = make(HEADERS="legacy-delta", TRUSTED_PROXIES=["127.0.0.0/8"])
    app.get("/a")(limited(ONCE, key="ip")(ok))
    found = [app.test_client().get("/a", headers={"X-Forwarded-For": f"192.0.2.{end}"}) for end in (1, 2, 1)]

    assert [answer.status_code for answer in found] == [200, 200, 429]
    assert found[0].headers["X-RateLimit-Remaining"] == "0"


@pytest.mark.parametrize("handled", [429, Denied])
def test_application_may_answer_denials_itself(make: Make, handled: Any) -> None:
    """By status, as those who come from flask-limiter do, or by exception; the header fields stay."""
    app = make()
    app.get("/a")(limited(ONCE, key="ip")(ok))
    app.register_error_handler(handled, lambda error: (f"slow down: {error.decision.denied_by[0]}", 429))
    denied = [app.test_client().get("/a") for _ in range(2)][-1]

    assert (denied.status_code, denied.text) == (429, "slow down: once")
    assert int(denied.headers["Retry-After"]) >= 1
    assert denied.headers["RateLimit"].startswith('"once";r=0')


def test_denial_that_a_view_raises_is_answered(make: Make) -> None:
    """A view that asks the limiter itself need not answer itself."""
    app = make()

    @app.get("/a")
    def view() -> str:
        get_limiter().acquire(ONCE, "a", max_wait=0)
        return "ok"

    answers = [app.test_client().get("/a") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[-1].headers["RateLimit"].startswith('"once";r=0')


def test_error_of_the_view_tells_too(make: Make) -> None:
    """And was counted: only a denial is not."""
    app = make()
    app.get("/a")(limited(PER_HOUR, key="ip")(lambda: 1 / 0))

    answers = [app.test_client().get("/a") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 500]
    assert [answer.headers["RateLimit"][:14] for answer in answers] == ['"per-hour";r=1', '"per-hour";r=0']


def test_two_limits_tell_in_one_field(make: Make) -> None:
    """The tighter one first."""
    app = make()
    wide = Limit(name="wide", algorithm="fixed_window", quota=9, window_seconds=60)
    app.get("/a")(limited(wide, key="ip")(limited(ONCE, key="ip")(ok)))

    policies = app.test_client().get("/a").headers["RateLimit-Policy"]
    assert policies == '"once";q=1;w=3600, "wide";q=9;w=60'


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "raised"])
def test_slot_is_free_when_the_view_is_over(make: Make, watcher: Limiter, fails: bool) -> None:
    """Also if it ends by an exception that nobody handles."""
    app = make()
    app.testing = True
    held = []

    def view() -> str:
        held.append(watcher.peek(ONE_SLOT, "slot:all:").remaining)
        return str(1 // (not fails))

    app.get("/a")(limited(ONE_SLOT, key="all", scope="slot")(view))
    try:
        app.test_client().get("/a")
    except ZeroDivisionError:
        assert fails
    assert held == [0]
    assert watcher.peek(ONE_SLOT, "slot:all:").remaining == 1


def test_stream_holds_its_slot_to_its_end(make: Make, serve_wsgi: Serve, watcher: Limiter) -> None:
    """Over a real server: while the client reads, and not longer."""
    app, go_on = make(), threading.Event()

    @app.get("/a")
    @limited(ONE_SLOT, key="all", scope="slot")
    def view() -> Response:
        def words() -> Iterator[str]:
            yield "hello "
            go_on.wait(10)
            yield request.args["name"]

        return Response(stream_with_context(words()))

    client = serve_wsgi(app)
    with client.stream("GET", "/a?name=ann") as answer:
        assert watcher.peek(ONE_SLOT, "slot:all:").remaining == 0
        go_on.set()
        assert answer.read() == b"hello ann"
    assert eventually(lambda: watcher.peek(ONE_SLOT, "slot:all:").remaining == 1)


def test_stream_that_its_client_leaves_frees_its_slot(make: Make, watcher: Limiter) -> None:
    """Servers close the response, and that closes the generator of the view too."""
    app, closed = make(), []

    @app.get("/a")
    @limited(ONE_SLOT, key="all", scope="slot")
    def view() -> Response:
        def words() -> Iterator[bytes]:
            try:
                while True:
                    yield b"word "
            finally:
                closed.append(True)

        return Response(words())

    answer = app.test_client().get("/a", buffered=False)
    assert next(answer.iter_encoded()) == b"word "
    answer.close()
    assert closed == [True]
    assert watcher.peek(ONE_SLOT, "slot:all:").remaining == 1


def test_policies_of_a_token_are_checked(make: Make, issue: Issue) -> None:
    """As a rule of one view; who shows no token, or a wrong one, does not pass."""
    token, app = issue(ONCE), make()
    app.get("/a")(check()(ok))
    app.get("/open", endpoint="open")(ok)

    assert statuses(app, "/a", "/a", headers=bearer(token)) == [200, 429]
    assert statuses(app, "/a", "/open") == [401, 200]
    wrong = app.test_client().get("/a", headers=bearer("sg_live_wrong"))
    assert (wrong.status_code, wrong.json["code"]) == (401, "unknown_token")
    assert "invalid_token" in wrong.headers["WWW-Authenticate"]


def test_policies_are_the_default_of_an_application(make: Make, issue: Issue) -> None:
    """Every view but those that are exempt; a cost comes from the options."""
    token, app = issue(PER_HOUR), make(check(), COSTS=lambda request: int(request.args.get("n", 1)))
    app.get("/a")(ok)
    app.get("/free", endpoint="free")(exempt(lambda: "free"))

    assert statuses(app, "/a?n=2", "/a", headers=bearer(token)) == [200, 429]
    assert statuses(app, "/free") == [200]


def test_the_path_of_a_mounted_application_is_the_whole_path(make: Make, issue: Issue) -> None:
    """As at every other door, so that one policy means the same behind all of them."""
    token = issue(Limit(name="api", quota=0, window_seconds=60, match=Match(path="/api/*")))
    app = make(check(), EXEMPT=["/api/free", "/free"])
    app.get("/<name>")(lambda name: name)
    mounted = Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/api": app}))

    assert [mounted.get(path, headers=bearer(token)).status_code for path in ("/api/a", "/api/free")] == [429, 200]
    assert statuses(app, "/a", headers=bearer(token)) == [200]


def test_attributes_of_a_request_decide_which_limits_match(make: Make, issue: Issue) -> None:
    """What the application adds counts beside path and method."""
    one_a_tenant = Limit(name="tenant", algorithm="fixed_window", quota=1, window_seconds=60, partition_by=("tenant",))
    token, app = issue(one_a_tenant), make()
    rule = check(attributes=lambda request: {"tenant": request.args["tenant"]})
    app.get("/a")(rule(ok))

    found = statuses(app, "/a?tenant=x", "/a?tenant=y", "/a?tenant=x", headers=bearer(token))
    assert found == [200, 200, 429]


def test_charge_on_looks_at_the_status(make: Make, issue: Issue) -> None:
    """A failure costs nothing."""
    only_success = Limit(name="ok", algorithm="fixed_window", quota=1, window_seconds=60, charge_on=("2xx",))
    token, app = issue(only_success), make()
    app.get("/a")(check()(lambda: ("", int(request.args["status"]))))

    found = statuses(app, *(f"/a?status={status}" for status in (503, 503, 200, 200)), headers=bearer(token))
    assert found == [503, 503, 200, 429]


def test_limit_in_code_may_look_at_the_status_too(make: Make) -> None:
    """A failed log-in counts, and one that succeeds does not."""
    failures = Limit(name="failures", algorithm="fixed_window", quota=1, window_seconds=60, charge_on=("401",))
    app = make()
    app.get("/a")(limited(failures, key="ip")(lambda: ("", int(request.args["status"]))))

    assert statuses(app, *(f"/a?status={status}" for status in (200, 200, 401, 200))) == [200, 200, 401, 429]


def test_limits_may_be_chosen_for_each_request(make: Make) -> None:
    """By a function of the request; None is no limit."""

    def by_plan(request: Any) -> Any:
        return {"free": "1/hour", "paid": "9/hour", "none": None}[request.args["plan"]]

    app = make()
    app.get("/a")(limited(by_plan, key="ip")(ok))

    assert statuses(app, "/a?plan=free", "/a?plan=free", "/a?plan=paid", "/a?plan=none") == [200, 429, 200, 200]


def test_limiter_is_made_from_the_environment(store: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest application names no store."""
    monkeypatch.setenv("SLUICEGATE_REDIS_URL", store.url)
    app = Flask(__name__)
    install(app)
    app.get("/a")(limited(ONCE, key="ip")(ok))

    assert statuses(app, "/a", "/a") == [200, 429]
    app.extensions["sluicegate"].close()


def test_store_that_is_away_lets_through_by_the_rule_of_the_limit(unused_tcp_port: int) -> None:
    """Each limit decides; the answer says that the store did not."""
    app = Flask(__name__)
    app.config["SLUICEGATE"] = {"REDIS_URL": f"redis://127.0.0.1:{unused_tcp_port}/0"}
    install(app)
    app.get("/a")(limited(ONCE, key="ip")(ok))
    first, second = [app.test_client().get("/a") for _ in range(2)]

    assert (first.status_code, first.headers["Sluicegate-Degraded"]) == (200, "fallback")
    assert second.status_code == 429
    app.extensions["sluicegate"].close()
