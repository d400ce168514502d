"""Whether a server answers at a URL."""

from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from cluster_core.errors import PartUnavailable


def require_answer(url: str, timeout_s: float) -> None:
    """Return when the server at ``url`` answers a ping. Raises `PartUnavailable`, naming the cure, when it does not."""
    shown = without_password(url)
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2
        )
    except (ValueError, RedisError) as error:
        message = f"directory.url: {shown} is not a URL of a server ({error})"
        raise PartUnavailable(message) from error
    try:
        client.ping()
    except (AuthenticationError, ResponseError) as error:
        message = f"directory.url: {shown} refuses us ({error}); put user and password into the URL"
        raise PartUnavailable(message) from error
    except (RedisError, OSError) as error:
        message = (
            f"directory.url: nothing answers at {shown} ({error}); "
            "start a server there or leave it empty for the embedded one"
        )
        raise PartUnavailable(message.replace("\n", " ")) from error
    finally:
        client.close()


def without_password(url: str) -> str:
    """Return a URL that can be shown: its password, before the host or in the query, starred out."""
    parts = urlsplit(url)
    if parts.password is not None:
        user, _, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}")
    pairs = ["password=***" if pair.startswith("password=") else pair for pair in parts.query.split("&")]
    parts = parts._replace(query="&".join(pairs))
    return url if parts == urlsplit(url) else urlunsplit(parts)  # joining again would drop empty parts
