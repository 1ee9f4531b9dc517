"""The scripted server itself, asked by another client than ours: the standard library's."""

import hashlib
import json
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from campaigns.demo.smtp_server import SmtpServerProcess, read_records

MESSAGE = b"Subject: Spring\r\nMessage-ID: <1@example.com>\r\n\r\n.Hello.\r\n"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[SmtpServerProcess]:
    with SmtpServerProcess(tmp_path / "accepted.jsonl", name="primary") as process:
        yield process


def client_of(process: SmtpServerProcess) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", process.port, local_hostname="client.example.com", timeout=10)


def send(client: smtplib.SMTP, recipient: str, sender: str = "news@example.com") -> tuple[int, bytes]:
    """The code and the text that ended the mail."""
    try:
        client.sendmail(sender, [recipient], MESSAGE)
    except smtplib.SMTPRecipientsRefused as refused:
        return refused.recipients[recipient]
    except smtplib.SMTPResponseException as refused:
        return refused.smtp_code, refused.smtp_error  # type: ignore[return-value]
    return 250, b""


def test_a_record_tells_what_was_accepted(process: SmtpServerProcess) -> None:
    with client_of(process) as client:
        assert send(client, "bob@example.net")[0] == 250
    [mail] = process.records()
    assert (mail.server, mail.recipient, mail.sender) == ("primary", "bob@example.net", "news@example.com")
    assert (mail.message_id, mail.size) == ("<1@example.com>", len(MESSAGE))
    assert mail.sha256 == hashlib.sha256(MESSAGE).hexdigest()
    assert mail.data is None
    deadline = time.monotonic() + 10
    while not process.records()[0].reply_sent:
        assert time.monotonic() < deadline, "the reply was never noted"
    assert process.stats()["accepted"] == 1


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ("rcpt-550-5.1.1@example.net", 550, b"5.1.1"),
        ("rcpt-550-5.1.1+17@example.net", 550, b"5.1.1"),
        ("data-451@example.net", 451, b""),
        ("dot-554-5.7.1@example.net", 554, b"5.7.1"),
        ("greylist@example.net", 451, b"4.7.1"),
        ("rcpt-nonsense@example.net", 250, b""),
        ("jean-pierre@example.net", 250, b""),
        ("dot-delay-0.01@example.net", 250, b""),
    ],
)
def test_the_address_chooses_the_misbehaviour(
    process: SmtpServerProcess, address: str, code: int, text: bytes
) -> None:
    with client_of(process) as client:
        got, said = send(client, address)
    assert got == code and text in said
    assert len(process.records()) == (code == 250)


@pytest.mark.parametrize(("local_part", "refusals"), [("greylist", 1), ("greylist-3+x", 3)])
def test_a_greylisted_address_is_accepted_in_the_end(
    process: SmtpServerProcess, local_part: str, refusals: int
) -> None:
    with client_of(process) as client:
        codes = [send(client, f"{local_part}@example.net")[0] for _ in range(refusals + 2)]
    assert codes == [451] * refusals + [250, 250]


def test_the_control_channel_sets_counts_and_clears(process: SmtpServerProcess) -> None:
    process.set("rcpt", "reply", reply="450 4.2.2 Mailbox full", times=2)
    with client_of(process) as client:
        assert [send(client, "bob@example.net")[0] for _ in range(3)] == [450, 450, 250]
        process.set("dot", "reply", reply="554 5.7.1 No", probability=0.0)
        assert send(client, "bob@example.net")[0] == 250
        process.set("dot", "reply", reply="554 5.7.1 No")
        assert send(client, "bob@example.net")[0] == 554
        process.clear()
        assert send(client, "bob@example.net")[0] == 250
    assert process.stats()["misbehaved.rcpt.reply"] == 2
    process.control({"extensions": ["SIZE 10"]})
    with client_of(process) as client:
        assert send(client, "bob@example.net")[0] == 552
        assert not client.has_extn("smtputf8")


def test_a_rule_for_every_phase_spares_nobody(process: SmtpServerProcess) -> None:
    with client_of(process) as patient:
        process.set("every", "reply", reply="421 4.3.2 Closing")
        assert patient.docmd("MAIL FROM:<news@example.com>")[0] == 421
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            client_of(process)
    process.clear()
    with client_of(process) as client:
        assert send(client, "bob@example.net")[0] == 250
    assert len(process.records()) == 1


def test_a_rule_for_every_phase_lets_a_body_in(process: SmtpServerProcess) -> None:
    with client_of(process) as client:
        process.set("every", "delay", seconds=0.01)
        assert send(client, "bob@example.net")[0] == 250
    assert [mail.recipient for mail in process.records()] == ["bob@example.net"]


def test_a_suspended_server_takes_connections_and_says_nothing(process: SmtpServerProcess) -> None:
    process.suspend()
    with socket.create_connection(("127.0.0.1", process.port), timeout=0.3) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)
        process.resume()
        connection.settimeout(10)
        assert connection.recv(3) == b"220"


def test_only_a_server_that_runs_can_be_suspended(process: SmtpServerProcess) -> None:
    process.kill()
    with pytest.raises(RuntimeError, match="not running"):
        process.suspend()


def test_it_can_refuse_connections_and_take_them_again(process: SmtpServerProcess) -> None:
    process.control({"listen": False})
    with pytest.raises(ConnectionRefusedError):
        client_of(process)
    process.control({"listen": True})
    with client_of(process) as client:
        process.control({"disconnect": True})
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ({"set": {"phase": "lunch", "action": "drop"}}, "phase 'lunch' is none of greeting"),
        ({"set": {"phase": "dot", "action": "dance"}}, "action 'dance' is none of reply"),
        ({"set": {"phase": "dot", "action": "reply"}}, "must be like '450 4.2.2"),
        ({"set": {"phase": "dot", "action": "reply", "reply": "nonsense"}}, "must be like '450 4.2.2"),
        ({"set": {"phase": "rcpt", "action": "accept-drop"}}, "for the phase dot alone"),
        ({"set": {"phase": "dot", "action": "drop", "tmies": 3}}, "tmies"),
        ({"set": {"phase": "dot"}}, "needs phase and action"),
        ({"jump": True}, "a command is one of"),
    ],
)
def test_a_mistake_in_a_command_is_answered_with_what_is_possible(
    process: SmtpServerProcess, command: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        process.control(command)


def test_a_line_that_is_no_json_does_not_end_the_control_channel(process: SmtpServerProcess) -> None:
    with (
        socket.create_connection(("127.0.0.1", process.control_port), 10) as channel,
        channel.makefile() as said,
    ):
        channel.sendall(b"nonsense\n[1]\n" + b'{"clear": true}\n')
        answers = [json.loads(said.readline()) for _ in range(3)]
    assert ["error" in answer for answer in answers] == [True, True, False]


def test_what_was_answered_with_250_survives_sigkill(process: SmtpServerProcess) -> None:
    confirmed: list[str] = []
    enough = threading.Event()

    def customer(number: int) -> None:
        try:
            with client_of(process) as client:
                for count in range(100_000):
                    recipient = f"bob+{number}.{count}@example.net"
                    if send(client, recipient)[0] == 250:
                        confirmed.append(recipient)
                    if len(confirmed) > 100:
                        enough.set()
        except (OSError, smtplib.SMTPException):
            return

    customers = [threading.Thread(target=customer, args=(number,)) for number in range(5)]
    for each in customers:
        each.start()
    assert enough.wait(30)
    process.kill()
    for each in customers:
        each.join(30)
    recorded = {mail.recipient for mail in process.records()}
    assert set(confirmed) <= recorded and len(recorded) <= len(confirmed) + len(customers)


def test_it_goes_on_after_a_torn_line_on_the_same_port(process: SmtpServerProcess) -> None:
    with client_of(process) as client:
        send(client, "ann@example.net")
    port = process.port
    process.kill()
    with process.record.open("ab") as file:
        file.write(b'{"id": "torn", "recipient": "eve@exa')
    process.start()
    assert process.port == port and process.is_running
    with client_of(process) as client:
        send(client, "bob@example.net")
    assert [mail.recipient for mail in process.records()] == ["ann@example.net", "bob@example.net"]
    assert len({mail.id for mail in process.records()}) == 2


def test_no_record_is_no_mail(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nothing.jsonl") == []


def test_it_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import pathlib, time\n"
        "from campaigns.demo.smtp_process import SmtpServerProcess\n"
        f"process = SmtpServerProcess(pathlib.Path({str(tmp_path / 'accepted.jsonl')!r})).start()\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 10
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)


def run_server(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "campaigns.demo.smtp_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--port, --record"),
        (("--port", "70000", "--record", "{tmp}/r"), "--port 70000 is not from 0 to 65535"),
        (("--port", "0", "--record", "{tmp}/none/r"), "there is no such directory"),
        (("--port", "0", "--record", "{tmp}/r", "--tls", "implicit"), "needs a certificate"),
        (("--port", "0", "--record", "{tmp}/r", "--certificate", "{tmp}/x.pem"), "No such file"),
    ],
)
def test_wrong_usage_is_said_in_a_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    ended = run_server(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert ended.returncode == 2 and says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_said_in_a_line(process: SmtpServerProcess, tmp_path: Path) -> None:
    ended = run_server("--port", str(process.port), "--record", str(tmp_path / "other.jsonl"))
    assert ended.returncode == 1 and f"cannot serve port {process.port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    other = SmtpServerProcess(tmp_path / "other.jsonl", port=process.port)
    with pytest.raises(RuntimeError, match=r"did not start: .*cannot serve port"):
        other.start()
    other.stop()
