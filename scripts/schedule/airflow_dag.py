"""Airflow: embed texts and photos every night, one run of each at a time. Copy into the DAG folder of Airflow 3.

In Airflow 2.4 or newer the operator's module is airflow.operators.bash.
"""

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator

COMMANDS = {
    "audioclip_beam": (
        "cd /srv/audioclip && .venv/bin/audioclip embed --input '/srv/texts/*.jsonl.gz' --output /srv/audioclip/out "
        "--checkpoint .cache/AudioCLIP-Full-Training.pt --id_field id --max_rejected 1%"
    ),
    "audioclip_photos": (
        "cd /srv/audioclip && .venv/bin/audioclip embed --input '/srv/photos/**/*.jpg' --output /srv/audioclip/photos "
        "--checkpoint .cache/AudioCLIP-Full-Training.pt --max_rejected 1%"
    ),
}

for name, command in COMMANDS.items():
    with DAG(
        dag_id=name,
        schedule="30 2 * * *",
        start_date=datetime(2026, 1, 1),
        catchup=False,  # a snapshot is of the corpus as it is now: past nights cannot be repeated
        max_active_runs=1,
        default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
    ):
        BashOperator(task_id="embed", bash_command=command)
