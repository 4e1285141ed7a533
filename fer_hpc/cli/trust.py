"""What the verbs that test the promises do. Heavy modules are imported where they are used."""

from __future__ import annotations

import json

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED
from fer_hpc.config.commands import DrillConfig, VerifyConfig
from fer_hpc.run.folder import read_run_config


def drill(config: DrillConfig) -> int:
    from fer_hpc.drill.drill import drill

    return drill(config)


def verify(config: VerifyConfig) -> int:
    for run in (config.a, config.b):
        read_run_config(run)  # raises the error before torch is loaded
    from fer_hpc.drill.verify import format_verdict, to_json, verify

    verdict = verify(config)
    print(json.dumps(to_json(verdict), indent=1) if config.json else format_verdict(verdict))
    return EXIT_FINISHED if verdict.equal else EXIT_FINDINGS
