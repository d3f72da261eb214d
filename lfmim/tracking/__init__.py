"""MLflow. Besides predictor.py the only room that imports mlflow."""

from lfmim.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    RegisteredVersion,
    load_predictor,
    register,
    resolve_version,
    rollback,
    set_champion,
)
from lfmim.tracking.runs import (
    PARENT_RUN,
    find_run,
    finish_run,
    job_run,
    latest_metrics,
    log_best,
    log_comparison,
    log_epoch,
    log_sweep,
    log_trial,
    logged_config,
    logged_trials,
    start_run,
    system_metrics,
    tracking_uri,
)

__all__ = [
    "CHALLENGER", "CHAMPION", "PARENT_RUN", "RegisteredVersion", "find_run", "finish_run", "job_run",
    "latest_metrics", "load_predictor", "log_best", "log_comparison", "log_epoch", "log_sweep", "log_trial",
    "logged_config", "logged_trials", "register", "resolve_version", "rollback", "set_champion", "start_run",
    "system_metrics", "tracking_uri",
]
