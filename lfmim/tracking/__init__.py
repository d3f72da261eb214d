"""MLflow. Besides predictor.py the only room that imports mlflow."""

from lfmim.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    RegisteredVersion,
    load_predictor,
    not_registered,
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
from lfmim.tracking.server import check_server

__all__ = [
    "CHALLENGER", "CHAMPION", "PARENT_RUN", "RegisteredVersion", "check_server", "find_run", "finish_run", "job_run",
    "latest_metrics", "load_predictor", "log_best", "log_comparison", "log_epoch", "log_sweep", "log_trial",
    "logged_config", "logged_trials", "not_registered", "register", "resolve_version", "rollback", "set_champion",
    "start_run", "system_metrics", "tracking_uri",
]
