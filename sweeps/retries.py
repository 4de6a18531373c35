"""What a spec may say about bad luck: how often a run is tried again, and when a sweep gives up."""

from __future__ import annotations

from pydantic import Field

from em_core.config import Strict
from launchers.causes import DEFAULT_LIMITS, HOST_MEMORY, KILLED, LOST, NODE_FAILURE, PARENT_GONE, PREEMPTED, TIME_LIMIT


class Retries(Strict):
    """How often a run may meet each kind of bad luck before it counts as failed. A bug is never tried again by itself."""

    killed: int = Field(DEFAULT_LIMITS[KILLED], ge=0, description="Its worker was killed (count).")
    lost: int = Field(DEFAULT_LIMITS[LOST], ge=0, description="Its job vanished and nobody knows why (count).")
    host_out_of_memory: int = Field(
        DEFAULT_LIMITS[HOST_MEMORY], ge=0, description="It ran out of host memory (count); each next try gets twice as much."
    )
    time_limit: int = Field(DEFAULT_LIMITS[TIME_LIMIT], ge=0, description="Its job met its time limit (count).")
    preempted: int = Field(DEFAULT_LIMITS[PREEMPTED], ge=0, description="Its job had to make room for another (count).")
    node_failure: int = Field(DEFAULT_LIMITS[NODE_FAILURE], ge=0, description="Its node failed (count).")
    parent_gone: int = Field(DEFAULT_LIMITS[PARENT_GONE], ge=0, description="The checkpoint to start from was gone (count).")
    exclude_node_after: int = Field(2, ge=1, description="Failures of a node after which the sweep's jobs avoid it (count).")
    stop_after: int = Field(
        20, ge=0, description="Runs that fail in the same way before the sweep stops itself (count; 0: never)."
    )

    def limits(self) -> dict[str, int]:
        """By cause, as `launchers.causes` names them."""
        return {
            KILLED: self.killed, LOST: self.lost, HOST_MEMORY: self.host_out_of_memory, TIME_LIMIT: self.time_limit,
            PREEMPTED: self.preempted, NODE_FAILURE: self.node_failure, PARENT_GONE: self.parent_gone,
        }  # fmt: skip
