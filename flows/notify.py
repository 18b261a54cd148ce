"""Notifications by what Prefect has for them: a block that knows where to, an automation that knows when.

The block holds the address and its secret, and is made at Prefect's page or in Python; this makes the automation.
"""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from tunewright.errors import UserError

AUTOMATION = "tunewright: a run has failed"
SUBJECT = "{{ flow.name }}: {{ flow_run.state.name }}"
BODY = "{{ flow_run.name }}: {{ flow_run.state.name }}\n{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"


def notify(block: str) -> str:
    """Send a notification by this block whenever a run ends in a state that is of Prefect's type Failed or Crashed,
    whatever its own name: GateClosed, BadInput, … Said again with another block, that one is used from then on.

    block: TYPE/NAME, as slack-webhook/team.

    Raises
        UserError  where the server has no such block.
    """
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(name, kind, include_secrets=False)
        except ObjectNotFound as error:
            raise UserError(
                f"{block}: this server has no such block. Make one at its page, under Blocks, and name it TYPE/NAME: "
                "slack-webhook/team."
            ) from error
        automation = AutomationCore(
            name=AUTOMATION,
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={"prefect.flow-run.*"},
                match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": ["FAILED", "CRASHED"]},
                threshold=1,
            ),
            actions=[SendNotification(block_document_id=document.id, subject=SUBJECT, body=BODY)],
        )
        before = client.read_automations_by_name(AUTOMATION)
        if before:
            client.update_automation(before[0].id, automation)
        else:
            client.create_automation(automation)
    return f"{block} tells of every run that fails."
