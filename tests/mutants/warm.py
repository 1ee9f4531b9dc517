"""All that the tests import from elsewhere, imported once: what runs a mutant's tests is forked from here.

Nothing of the project is imported, and nothing is started.
"""

# ruff: noqa: F401 - to have been imported is all

import _pytest.assertion.rewrite
import aiosmtplib
import alembic.autogenerate
import alembic.command
import celery.app.base
import celery.bin.worker
import celery.worker.consumer
import email_validator
import hypothesis.strategies
import inscriptis
import jinja2.sandbox
import kombu.transport.redis
import psutil
import psycopg
import pydantic
import pytest
import pytest_asyncio.plugin
import redis
import rich.console
import sqlalchemy.dialects.postgresql
import sqlalchemy.dialects.sqlite
import trustme
import uvloop
