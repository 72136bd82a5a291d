from tests.workflow.conftest import finished_run

__all__ = ["finished_run"]
