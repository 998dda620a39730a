"""Fetch what tests need of the network, while other things run: `python -m tests.support.fetch_all`."""

from __future__ import annotations

import pytest

from tests.support.engines import flink_jars, job_server, prism, spark_jars
from tests.support.environments import dataflow_environment, supply_chain_environment

if __name__ == "__main__":
    try:
        flink_jars()
        job_server("Flink")
        spark_jars()
        job_server("Spark")
        prism()
        dataflow_environment()
        supply_chain_environment()
    except (pytest.skip.Exception, pytest.fail.Exception, OSError) as problem:
        print(f"fetch_all: left to the tests: {problem}")
