"""Titles, units and decimals of the speaker model's metrics, in the order of tables."""

from typing import NamedTuple


class Metric(NamedTuple):
    """Row of a table of metrics.

    Attributes:
        title: human-readable name.
        unit: empty if there is none.
        digits: printed decimals.
    """

    title: str
    unit: str
    digits: int

    @property
    def label(self) -> str:
        """Title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


# Keys are those of metrics.jsonl, of measures.json and of TensorBoard.
METRICS = {
    "si_sdri": Metric("SI-SDR improvement", "dB", 2),
    "si_sdri_median": Metric("SI-SDR improvement, median", "dB", 2),
    "si_sdri_overlapped": Metric("SI-SDR improvement, talked over", "dB", 2),
    "sdri": Metric("SDR improvement", "dB", 2),
    "si_sdr": Metric("SI-SDR", "dB", 2),
    "sdr": Metric("SDR", "dB", 2),
    "si_sdri_one_voice": Metric("SI-SDR improvement, one voice", "dB", 2),
    "si_sdri_three_voices": Metric("SI-SDR improvement, three voices", "dB", 2),
    "stoi": Metric("STOI", "", 3),
    "stoi_mixture": Metric("STOI of the mixture", "", 3),
    "pesq": Metric("PESQ", "", 2),
    "pesq_mixture": Metric("PESQ of the mixture", "", 2),
    "iou": Metric("IoU", "", 3),
    "f_score": Metric("F score of masks", "", 3),
    "binding": Metric("binding", "", 3),
    "confusion": Metric("confusion", "", 3),
    "confusion_overlapped": Metric("confusion, talked over", "", 3),
    "silence_db": Metric("energy of silent people", "dB", 1),
    "state_acc": Metric("accuracy of states", "", 3),
    "false_slots": Metric("false slots", "a scene", 2),
    "residual_acc": Metric("accuracy of the residual", "", 3),
    "activity_ap": Metric("frame-level AP of speech activity", "", 3),
    "activity_auc": Metric("frame-level AUC of speech activity", "", 3),
    "der": Metric("diarization error rate", "", 3),
    "der_missed": Metric("diarization error rate, missed speech", "", 3),
    "der_false_alarm": Metric("diarization error rate, false alarm", "", 3),
    "der_confusion": Metric("diarization error rate, confusion", "", 3),
    "der_collar": Metric("diarization error rate, collar of 0.25 s", "", 3),
    "own_voice_auc": Metric("AUC of own against another voice", "", 3),
}
