from tests.threads import one_thread  # noqa: F401 it applies to every test of the folder
