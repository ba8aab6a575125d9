"""Who may make which requests: open calls, calls with a client's key, and changes by an admin.

If the operator has set a key, all paths and calls need it, except those that are listed as open.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from protocol.http.errors import ForbiddenError, UnauthorizedError, render_error
from protocol.http.middleware.bearer_keys import Keys
from protocol.http.open_paths import is_open
from runners.core.arguments import Arguments

_AUTHORIZATION = b"authorization"


class Access:
    """The operator's rules: who may make which requests."""

    def __init__(self, arguments: Arguments) -> None:
        self._clients = Keys(arguments.api_key, arguments.api_key_file)
        self._admins = Keys(arguments.admin_api_key, arguments.admin_api_key_file)
        self._enable_repository = arguments.enable_repository

    @property
    def asks_clients(self) -> bool:
        """Whether clients need a key."""
        return self._clients.configured

    @property
    def asks_admins(self) -> bool:
        """Whether changes need an admin's key."""
        return self._admins.configured

    def check_client(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check a request that changes nothing; an admin's key is also valid.

        Args:
            headers: names, in lower case, and values.

        Raises:
            UnauthorizedError: clients need a key, and the request has no valid one, or several.
        """
        if not self._clients.configured:
            return
        authorization = _authorization(headers)
        # Both kinds are compared, so that the time does not tell which kind matched.
        if not any([self._clients.include(authorization), self._admins.include(authorization)]):
            raise UnauthorizedError("this server asks for a key: send it as Authorization: Bearer KEY")

    def check_change(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check a request that loads or unloads a model or an adapter.

        Raises:
            UnauthorizedError: changes need a key, and the request has none.
            ForbiddenError: the request has a client's key instead of an admin's, or the server has no keys and does not
                allow changes.
        """
        authorization = _authorization(headers)
        if self._admins.configured:
            if self._admins.include(authorization):
                return
            if self._clients.configured and self._clients.include(authorization):
                raise ForbiddenError("loading and unloading need an admin's key, which this one is not")
            raise UnauthorizedError("loading and unloading ask for an admin's key: Authorization: Bearer KEY")
        if self._clients.configured:
            self.check_client(headers)
        elif not self._enable_repository:
            raise ForbiddenError(
                "loading and unloading are off on this server, which has no keys: --admin_api_key or "
                "--enable_repository allows them"
            )

    def check_change_over_http(self, request: Request) -> None:
        """As `check_change`; and refuse a request from a web page of another origin.

        Browsers send no preflight for such a page's POST without a content type.

        Raises:
            ForbiddenError: the request comes from another origin, or as `check_change`.
            UnauthorizedError: as `check_change`.
        """
        _refuse_other_origins(request)
        self.check_change(request.headers.raw)


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    return [value for name, value in headers if name == _AUTHORIZATION]


def _refuse_other_origins(request: Request) -> None:
    """Refuse requests of other origins, as Go's http.CrossOriginProtection does.

    Browsers set Sec-Fetch-Site, which pages cannot, and old browsers Origin; other clients send neither.
    https://www.w3.org/TR/fetch-metadata/

    Raises:
        ForbiddenError: the request comes from another origin.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None:
        # The scheme is not compared: a proxy may speak another one.
        is_foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    else:
        is_foreign = site not in ("same-origin", "none")
    if is_foreign:
        raise ForbiddenError("a web page of another origin cannot change what this server has loaded")


async def refuse_without_key(scope: Scope, access: Access) -> Response | None:
    """The refusal of a request without a key; None for a request that may pass, or that needs none."""
    if is_open(scope["method"], scope["path"]):
        return None
    try:
        access.check_client(scope["headers"])
    except UnauthorizedError as error:
        return await render_error(Request(scope), error)
    return None
