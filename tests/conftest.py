import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def _forget_compiled_programs(request):
    """Every depth compiles anew; without this the suite would hold on to all of it."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()
