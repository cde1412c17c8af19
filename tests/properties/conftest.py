"""How hard hypothesis tries: a little within `make test`, and long with `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

from tests.threads import one_thread

__all__ = ["one_thread"]

_FOR_ALL = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
# Within `make test` the same examples every time: a test that fails once in a while is no test.
settings.register_profile("test", max_examples=25, derandomize=True, database=None, **_FOR_ALL)
settings.register_profile("fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "600")), **_FOR_ALL)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))
