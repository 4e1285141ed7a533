"""What Grid Engine's programs print: qstat's XML, and qacct's text."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from fer_hpc.cluster.programs import number_of
from fer_hpc.cluster.scheduler import JobState
from fer_hpc.cluster.starts import exit_in_words
from fer_hpc.parallel.process import output_of

KILLED = {"25": "deleted before its next start", "37": "time or memory limit"}
MAX_TASKS = 1_000_000  # tasks of an array that are listed
STATES = {"r": "RUNNING", "t": "RUNNING", "q": "PENDING", "E": "ERROR", "d": "ENDING"}


def parse_xml(xml: str) -> ET.Element | None:
    try:
        return ET.fromstring(xml)
    except ET.ParseError:
        return None


def job_elements(xml: str) -> dict[str, ET.Element]:
    """The jobs of `qstat -j ... -xml` by their number."""
    root = parse_xml(xml)
    elements = root.iterfind(".//djob_info/element") if root is not None else ()
    return {element.findtext("JB_job_number", ""): element for element in elements}


def _tasks(element: ET.Element) -> Iterable[ET.Element]:
    return element.iterfind("JB_ja_tasks/ulong_sublist")


def task_start(element: ET.Element, task: str) -> float:
    """When a task has started, seconds since 1970; 0 where that is not shown."""
    for each in _tasks(element):
        if task == "undefined" or each.findtext("JAT_task_number") == task:
            return number_of(each.findtext("JAT_start_time", "0"))
    return 0.0


def listed_states(xml: str) -> dict[str, JobState]:
    """The living jobs of `qstat -xml`, a task of an array each by itself."""
    root, states = parse_xml(xml), {}
    for each in root.iter("job_list") if root is not None else ():
        number, letters = each.findtext("JB_job_number", ""), each.findtext("state", "")
        order = "dE" if letters[:1] == "d" or "E" in letters else "rtq"
        word = next((STATES[c] for c in order if c in letters), "SUSPENDED")
        text = each.findtext("JB_submission_time") or ""
        state = JobState(
            word,
            "" if word == "RUNNING" else letters,
            True,  # in error, too: it stays until it is deleted or corrected
            _seconds(text),
            each.findtext("JB_name", ""),
        )
        tasks = each.findtext("tasks")
        for name in [number] if tasks is None else _task_names(number, tasks):
            states[name] = state
    return states


def _task_names(number: str, tasks: str) -> list[str]:
    """JOB.TASK of 1-5:2,8."""
    names = []
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?(?::([1-9]\d{0,8}))?", part.strip(), re.A)
        if match:
            first, last, step = (int(each or 0) for each in match.groups())
            numbers = range(first, (last or first) + 1, step or 1)
            names += [f"{number}.{i}" for i in numbers[:MAX_TASKS]]
    return names


def accounting(number: str) -> dict[str, list[dict[str, str]]]:
    """The records of qacct for a job, by task ("undefined" outside an array), oldest first."""
    records: dict[str, list[dict[str, str]]] = {}
    for block in output_of("qacct", "-j", number).split("=" * 62)[1:]:
        pairs = (line.split(None, 1) for line in block.splitlines() if line.strip())
        values = {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}
        records.setdefault(values.get("taskid", "undefined"), []).append(values)
    return records


def end_state(block: dict[str, str]) -> JobState:
    failed = (block.get("failed", "").split() or ["0"])[0]
    code = int(number_in(block, "exit_status"))
    submitted = _seconds(block.get("qsub_time", ""))
    name = block.get("jobname", "")
    if failed == "0" and code == 0:
        return JobState("COMPLETED", "", False, submitted, name)
    reason = KILLED.get(failed) or (exit_in_words(code) if code else block.get("failed", ""))
    return JobState("FAILED", reason, False, submitted, name)


def _seconds(text: str) -> float:
    """Seconds since 1970 of a local time; 0 where it names none."""
    for form in ("%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y", "%m/%d/%Y %H:%M:%S"):
        try:
            return time.mktime(time.strptime(text.partition(".")[0], form))
        except (ValueError, OverflowError):
            continue
    return 0.0


def number_in(block: dict[str, str], key: str) -> float:
    return number_of(block.get(key, ""))
