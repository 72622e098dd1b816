"""Chat completions from an OpenAI-compatible endpoint, asked again while it may recover.

The standard library does it: requests are few and slow, so threads suffice, and no dependency is
worth it. Nothing that a server or a request holds is repeated in an error: it may be a patient's
text, or the key.
"""

import datetime
import email.message
import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KEY_VARIABLE = "MEDCARE_JUDGE_KEY"
_PASSING = {408, 409, 425, 429, *range(500, 600)}
_MOST_BYTES = 4 << 20


class Reply(NamedTuple):
    """What an endpoint wrote, and the tokens that it counted; empty and 0 where it says nothing."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class EndpointError(Exception):
    """An endpoint that gave no reply.

    Attributes:
      reason: A few words without any text of a request or reply, to count by.
      is_final: Whether the next request cannot fare better: wrong key, wrong address.
    """

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the texts to a host that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follows nothing, so that the 3xx is met as an error."""


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers.

    Attributes:
      url: Of the API, as in `https://host/v1`; `/chat/completions` is added.
      model: As the endpoint names it.
      key: Sent as a bearer token; from the environment variable MEDCARE_JUDGE_KEY, if it is set.
      timeout: Seconds without a byte until a request counts as lost.
      tries: Requests for one reply, the first included.
      first_wait: Seconds before the second try; doubled for each further one.
      longest_wait: Seconds that a server may ask to be waited for.
    """

    url: str
    model: str
    key: str = field(default_factory=lambda: os.environ.get(KEY_VARIABLE, "").strip(), repr=False)
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        """Refuses addresses that cannot be asked, and keys in places that are written down."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "the judge's address carries a user, a password or a query, which would be "
                f"written into results; put the key into the environment as {KEY_VARIABLE}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"expected the judge's address as https://HOST/v1, got {self.url!r}; no text was "
                "sent anywhere"
            )
        if not self.model:
            raise ValueError("expected the judge's model, as its endpoint names it; got none")
        if not (self.key.isascii() and self.key.isprintable()):
            # http.client would quote the whole header in its refusal.
            raise ValueError(
                f"expected a key of printable ASCII in {KEY_VARIABLE}, got other characters (a "
                "line end, a typographic dash?); copy it anew. It was sent nowhere"
            )

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The reply to messages, at temperature 0.

        Waits between tries grow twofold, with a random part so that many clients do not return at
        once, and are as long at least as a server's Retry-After.

        Raises:
          EndpointError: No reply after all tries, or one that asking again cannot mend.
        """
        for number in range(self.tries):
            try:
                return self._ask_once(messages)
            except _TryAgainError as error:
                wait = max(self.first_wait * 2**number * random.uniform(0.5, 1.0), error.wait)
                if number + 1 == self.tries or wait > self.longest_wait:
                    raise EndpointError(error.reason) from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _ask_once(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """One request."""
        body = {"model": self.model, "messages": list(messages), "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                return _read_reply(response.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code}"
            if error.code in _PASSING:
                raise _TryAgainError(reason, _retry_after(error.headers)) from None
            raise EndpointError(reason, is_final=error.code in (401, 403, 404)) from None
        except TimeoutError:
            raise _TryAgainError("no answer in time") from None
        except (OSError, http.client.HTTPException) as error:
            is_late = isinstance(getattr(error, "reason", None), TimeoutError)
            raise _TryAgainError("no answer in time" if is_late else "no connection") from None


class _TryAgainError(Exception):
    """A failure that may pass, and the seconds that the server asked to be waited for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


def _read_reply(body: bytes) -> Reply:
    """The first choice of a completion; empty if it has no text, since it is billed all the same.

    Anything else that came is no reply.
    """
    try:
        content = json.loads(body)
        text = content["choices"][0]["message"].get("content")
        usage = content.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise EndpointError("no chat completion") from None
    return Reply(text if isinstance(text, str) else "", *counts)


def _retry_after(headers: email.message.Message) -> float:
    """The seconds of a Retry-After header, which may also be a date; 0 without a usable one."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        if value.isdigit():
            return float(value)
        then = email.utils.parsedate_to_datetime(value)
        return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
