"""`callrouter run`: the composition root of the daemon. The only module that knows every part.

Registering the ARI application *is* taking calls, and it waits for nothing but the configuration and the prompts: database,
AMI and metrics come up beside it and catch up. Any of them may be away for hours; callers do not notice.

    ari ──▶ intake (menu)          cel journal ──▶ ledger ──▶ database ◀── upkeep (recordings)
    ari, ami ──▶ emergency (what the journal does not tell in time) ──▶ ledger
    ami ──▶ gauges, standing, held, set_back       hep ──▶ refusals, trace        watchdog ──▶ asks Asterisk, ends it if wedged
    reconciliation: every witness compared, each night
"""

import asyncio
import fcntl
import gc
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO

import structlog
import uvloop
from aiohttp import web

from callrouter import log as logging
from callrouter.asterisk.ami import Ami
from callrouter.asterisk.ari import ApplicationReplaced, Ari, Call
from callrouter.asterisk.conf import record, secret
from callrouter.asterisk.hep import HepListener
from callrouter.config import Settings
from callrouter.domain.witness import Invite
from callrouter.health import Component
from callrouter.profile import Profile
from callrouter.service.disk import Disk
from callrouter.service.emergency import Emergency
from callrouter.service.gauges import Gauges
from callrouter.service.held import Held
from callrouter.service.intake import Intake, flow
from callrouter.service.ledger import NODE, Ledger
from callrouter.service.parts import Parts
from callrouter.service.pulse import Pulse
from callrouter.service.reconciliation import Reconciliation
from callrouter.service.refusals import Refusals
from callrouter.service.setback import SetBack
from callrouter.service.setup import city
from callrouter.service.siptrace import SipTrace
from callrouter.service.standing import Standing
from callrouter.service.upkeep import Upkeep
from callrouter.service.watchdog import Watchdog
from callrouter.store.database import Database
from callrouter.web.health import add_health
from callrouter.web.problem import problems

log = structlog.get_logger(__name__)
EX_CONFIG = 78  # sysexits.h: supervisors do not restart it
_LISTEN_AGAIN_S = 1.0
_LOCK_S = 5.0  # a predecessor that is just ending still holds it


class Daemon:
    """Everything of one daemon, built in one screen; `run` until SIGTERM."""

    def __init__(self, settings: Settings, profile: Profile) -> None:
        state, ports = settings.state, settings.ports(profile)
        self.database = Database(settings.database_url)
        self.gauges, self.parts = Gauges(), Parts()
        self.pulse = Pulse(self.gauges.registry)
        server = (profile.network.sip_address, ports.sip)
        self.trace = SipTrace(state / "sip", server, profile.retention.journal_days)
        emergency = state / "emergency" / "cel.csv"
        self.emergency = Emergency(
            emergency,
            state / "recordings",
            lambda: self.ledger.journal(),
            lambda call_id: self.ledger.knows(call_id),
            self._invite,
            lambda: self.ledger.emergency_written(),
        )
        self.ledger = Ledger(
            self.database,
            state / "journal" / "cel.csv",
            city(profile),
            secret(state, "test_call"),
            emergency=emergency,
            on_read=self.emergency.journaled,
            on_restored=self.emergency.restored,
        )
        self.standing = Standing(profile, lambda action: self.ami.do(action), self.gauges.registry)
        told = self.gauges.routed, self.emergency.decided, self.standing.arrived
        self.intake = Intake(flow(profile), state / "prompts", *told)
        self.ari = Ari(f"http://127.0.0.1:{ports.ari}", secret(state, "ari"), self._serve, self._arrived)
        self.ami = Ami("127.0.0.1", ports.ami, "daemon", secret(state, "ami_daemon"), self._event, self._resync, self._set_back)
        self.set_back = SetBack(ports.ami, secret(state, "ami_console"))
        self.held = Held(self.ari.hang_up)
        self.refusals = Refusals(self.database)
        heard = self.refusals.count, self.trace.take, self.trace.gap, self.trace.listening
        self.hep = HepListener("127.0.0.1", ports.hep, server, *heard)
        self.reconciliation = Reconciliation(self.database, state, profile, secret(state, "test_call"))
        self.upkeep = Upkeep(self.database, state, NODE)
        self.disk = Disk(state, partial(record, settings))
        self.watchdog = Watchdog(state, server, self.ami, self.ari, self.ledger)
        self.port = ports.daemon

    async def run(self) -> None:
        self.gauges.registry.register(self.reconciliation)
        self.gauges.registry.register(self.emergency)
        self.gauges.watch(self.ari, self.ledger, self.refusals, self.watchdog)
        runner = web.AppRunner(self._http(), access_log=None)
        await runner.setup()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.ari.run())  # first: from here on calls are ours
                watching = (self.watchdog, self.pulse, self.reconciliation)
                for part in (
                    self.ledger,
                    self.ami,
                    self.standing,
                    self.set_back,
                    self.held,
                    self.emergency,
                    self.hep,
                    self.trace,
                    self.refusals,
                    self.upkeep,
                    self.disk,
                    *watching,
                ):
                    group.create_task(self.parts.keep(part))
                await self._listen(runner)
        finally:
            await runner.cleanup()
            await self.database.dispose()

    async def components(self) -> Mapping[str, Component]:
        return {
            "asterisk": self.watchdog.status(),
            "ari": self.ari.status(),
            "ami": self.ami.status(),
            "database": self.upkeep.database_status(),
            "journal": self._journal(),
            "disk": self.disk.status(),
            "recordings": self.upkeep.status(),
            "reconciliation": self.reconciliation.status(),
            "daemon": self._itself(),
        }

    def _itself(self) -> Component:
        pulse, parts = self.pulse.status(), self.parts.status()
        return pulse if parts.ok else parts

    def _journal(self) -> Component:
        journal, emergency = self.ledger.status(), self.emergency.status()
        return emergency if journal.ok and not emergency.ok else journal

    async def _listen(self, runner: web.AppRunner) -> None:
        """Health and metrics. Calls do not wait for their port, which somebody else may have for a while."""
        while True:
            site = web.TCPSite(runner, "127.0.0.1", self.port)
            try:
                await site.start()
                return
            except OSError as error:
                log.warning("no health and no metrics yet", reason=str(error))
                await site.stop()
                await asyncio.sleep(_LISTEN_AGAIN_S)

    def _http(self) -> web.Application:
        app = web.Application(middlewares=[problems])
        add_health(app, self.components, self.gauges.registry)
        return app

    def _arrived(self, channel_id: str, created: str) -> None:
        self.ledger.arrived(channel_id)

    def _invite(self, sip_call_id: str) -> Invite | None:
        self.hep.take()  # its copy came before the caller did, but may not have been looked at
        return self.trace.find(sip_call_id)

    async def _serve(self, call: Call) -> None:
        self.emergency.arrived(call.channel)
        await self.intake.serve(call)

    def _event(self, event: Mapping[str, str]) -> None:
        self.gauges.event(event)
        self.emergency.event(event)
        self.standing.event(event)
        self.held.event(event)

    def _set_back(self, seconds: float) -> None:
        self.set_back.noticed(seconds)

    async def _resync(self) -> None:
        self.held.forget()
        snapshot = await self.ami.list({"Action": "QueueStatus"})
        self.gauges.members(snapshot)
        self.standing.waiting(snapshot)


def main(settings: Settings, profile: Profile) -> int:
    """Run until told to stop. Returns the exit code; EX_CONFIG where a restart would not help."""
    logging.configure()
    lock = _only_one(settings.state)
    if lock is None:
        log.error("another daemon of this stack runs already; stop it first (make down)")
        return EX_CONFIG
    code = 0
    try:
        gc.freeze()  # what is there by now stays: not gone through again and again
        uvloop.run(_until_stopped(Daemon(settings, profile)))
    except* ApplicationReplaced as errors:
        log.error("ended", reason=str(errors.exceptions[0]))
        code = EX_CONFIG
    except* Exception:
        log.exception("daemon failed; its supervisor starts it again, callers go on in the dialplan")
        code = 1
    return code


async def _until_stopped(daemon: Daemon) -> None:
    task = asyncio.create_task(daemon.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped")


def _only_one(state: Path) -> IO[str] | None:
    """The lock of this state directory, held while the file is open; None when another process goes on holding it."""
    path = state / "run" / "daemon.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, deadline = path.open("a+"), time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.1)
