import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # several processes share the cores
os.environ["JFREE_CACHE"] = "off"  # what is measured of compilation must not depend on earlier runs

# Tests compile much and run little, unless run in full.
if not os.environ.get("JFREE_FULL"):
    flags = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags

import jax
import jaxtyping
import matplotlib
import matplotlib.pyplot as plt
import pytest

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")


@pytest.fixture
def unchecked():
    """What jfree itself says of arguments of wrong types, which jaxtyping would refuse before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """Every compiled function takes hundreds of memory maps, of which a process may have 65530."""
    yield
    jax.clear_caches()
