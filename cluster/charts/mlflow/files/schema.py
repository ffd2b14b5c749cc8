"""The database's schema: `upgrade` brings it to this MLflow's, `wait` returns when it is there.

Tracking and accounts keep tables and versions of their own in one database, so one backup holds both. `upgrade` also
creates the administrator, once: the servers never see that password. Two upgrades at a time wait for each other.
"""

import logging
import os
import sys
import time

import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.server.auth.db import utils as accounts
from mlflow.store.db import utils as tracking
from sqlalchemy.exc import SQLAlchemyError

URI = os.environ["MLFLOW_BACKEND_STORE_URI"]
LOCK = 3_172_000  # any number, the same in all that upgrade
logger = logging.getLogger("schema")


def upgrade(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        # As `mlflow db upgrade` does; but where only accounts have tables yet, it takes the database for an old one.
        if "experiments" in sqlalchemy.inspect(engine).get_table_names():
            tracking._upgrade_db(engine)
        else:
            tracking._initialize_tables(engine)
        accounts.migrate(engine, "head")
        from mlflow.server.auth import bootstrap_admin_user  # reads the configuration when it is imported

        bootstrap_admin_user()
    logger.info("the schema is %s", versions(engine))


def versions(engine: sqlalchemy.Engine) -> tuple[str | None, str | None]:
    """Of tracking and of accounts; None where there are no tables."""
    with engine.connect() as connection:
        options = {"version_table": "alembic_version_auth"}
        context = MigrationContext.configure(connection, opts=options)
        return tracking._get_schema_version(engine), context.get_current_revision()


def wanted() -> tuple[str | None, str | None]:
    """What this MLflow works with."""
    head = ScriptDirectory.from_config(accounts._get_alembic_config(URI)).get_current_head()
    return tracking._get_latest_schema_revision(), head


def has_administrator(engine: sqlalchemy.Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.execute(sqlalchemy.text("SELECT count(*) FROM users WHERE is_admin")).scalar())


def wait(engine: sqlalchemy.Engine, pause_s: float = 2) -> None:
    """Without end: the kubelet shows that a pod waits, and the log says for what."""
    while True:
        try:
            found = versions(engine)
            if found == wanted() and has_administrator(engine):
                return
            logger.info("the schema is %s, wanted is %s with an administrator", found, wanted())
        except SQLAlchemyError as error:
            logger.warning("the database does not answer: %s", type(error).__name__)
        time.sleep(pause_s)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    {"upgrade": upgrade, "wait": wait}[sys.argv[1]](tracking.create_sqlalchemy_engine(URI))
