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
    CONTINUES,
    PARENT_RUN,
    failing,
    find_run,
    finish_run,
    job_run,
    latest_metrics,
    log_best,
    log_comparison,
    log_datasets,
    log_epoch,
    log_history,
    log_sweep,
    log_trial,
    logged_config,
    logged_tag,
    logged_trials,
    prepare,
    reopen_run,
    resume_run,
    start_run,
    system_metrics,
    tracking_uri,
)
from lfmim.tracking.server import check_server

__all__ = [
    "CHALLENGER", "CHAMPION", "CONTINUES", "PARENT_RUN", "RegisteredVersion", "check_server", "failing", "find_run",
    "finish_run", "job_run", "latest_metrics", "load_predictor", "log_best", "log_comparison", "log_datasets",
    "log_epoch", "log_history", "log_sweep", "log_trial", "logged_config", "logged_tag", "logged_trials",
    "not_registered", "prepare", "register", "reopen_run", "resolve_version", "resume_run", "rollback", "set_champion",
    "start_run", "system_metrics", "tracking_uri",
]
