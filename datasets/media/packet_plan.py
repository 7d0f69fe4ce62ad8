"""Plan of a video's packets: which are decoded for the wanted frames, and where decoding begins.

Packets between two key frames are a group. Frames of a group are predicted from frames of the same
group, and those that are presented before its key frame also from the group before.
"""

import numpy as np

from cavmae.datasets.media.probe import Probe

FULL, REFERENCES, DROP = 0, 1, 2  # decode; decode only if others are predicted from it; do not


def plan_packets(probe: Probe, wanted: np.ndarray) -> np.ndarray:
    """Plan for decoding frames, int64 [packets]: FULL, REFERENCES or DROP.

    A plan that begins in mid-file decodes one more group ahead, since some streams do not decode
    from every packet that is marked as a key frame.

    Args:
        probe: of a file whose packets name their frames (no ``listing``).
        wanted: indices into ``probe.frame_times``.
    """
    stamps, starts = probe.packet_pts, _group_starts(probe)
    is_wanted = np.isin(stamps, probe.frame_stamps[wanted])
    group = np.searchsorted(starts, np.arange(len(stamps)), side="right") - 1
    needed = np.zeros(len(starts), dtype=bool)
    last = np.full(len(starts), -1)  # last packet needed of each group
    for packet in np.flatnonzero(is_wanted):
        number = group[packet]
        needed[number] = True
        last[number] = packet
        if stamps[packet] < stamps[starts[number]] and number:
            needed[number - 1] = True
            last[number - 1] = starts[number] - 1
    first = int(np.argmax(needed))
    if needed[first] and first:
        needed[first - 1] = True
        last[first - 1] = starts[first] - 1
    used = needed[group] & (np.arange(len(stamps)) <= last[group])
    return np.where(is_wanted, FULL, np.where(used, REFERENCES, DROP))


def plan_again(probe: Probe, plan: np.ndarray, first: int, last: int) -> np.ndarray | None:
    """Plan for the rest that begins two key frames early and decodes all up to the last frame.

    Args:
        plan: that is being decoded, and has not given all of the frames.
        first, last: indices of the frames to decode again.

    Returns:
        None: the plan has decoded all of these packets, so that the frames are lost.
    """
    begin, end = _packet_of(probe, first), _packet_of(probe, last)
    keys = np.flatnonzero(probe.packet_keys[: begin + 1])
    entry = int(keys[-3]) if len(keys) > 2 else 0
    if (plan[entry : end + 1] == FULL).all():
        return None
    # What is needed after them is decoded in full, too: of a damaged file this is the last plan.
    again = np.where(plan == DROP, DROP, FULL)
    again[:entry] = DROP
    again[entry : end + 1] = FULL
    return again


def run_up(probe: Probe, frame: int) -> int:
    """Number of packets ahead of a frame's own with which a plan from this frame on begins."""
    starts, packet = _group_starts(probe), _packet_of(probe, frame)
    group = int(np.searchsorted(starts, packet, side="right")) - 1
    leading = bool(probe.packet_pts[packet] < probe.packet_pts[starts[group]])
    return packet - int(starts[max(0, group - leading - 1)])


def _group_starts(probe: Probe) -> np.ndarray:
    """Numbers of the packets that begin a group."""
    starts = np.flatnonzero(probe.packet_keys)
    return starts if starts.size and starts[0] == 0 else np.concatenate([[0], starts])


def _packet_of(probe: Probe, frame: int) -> int:
    return int(np.flatnonzero(probe.packet_pts == probe.frame_stamps[frame])[0])
