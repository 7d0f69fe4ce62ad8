"""Cues that are drawn from the ground truth."""

import torch

from cavmae.finetune.speaker.cue_sampling import JITTER, draw_cues
from cavmae.finetune.speaker.cues import KINDS
from cavmae.finetune.speaker.matcher import People


def test_cues_point_at_the_pixels_of_their_person() -> None:
    """The box of a mask is exact, that of a user is near it; nobody points at an empty mask."""
    torch.manual_seed(0)
    masks = torch.zeros(3, 2, 1, 40, 50, dtype=torch.bool)
    masks[0, 1, 0, 10:30, 5:25] = True
    masks[1, 0, 0, 0:40, 40:50] = True
    present = torch.ones(3, 2, dtype=torch.bool)
    people = People(present, present, present, torch.zeros(3, 2, 160))
    target = torch.tensor([1, 0, 0])
    voice, known_voice = torch.zeros(3, 4, 128), torch.zeros(3, dtype=torch.bool)
    exact = torch.tensor([[0.1, 0.25, 0.5, 0.75], [0.8, 0.0, 1.0, 1.0]])
    for kind in ("mask", "box", "point"):
        cues, cued = draw_cues(
            people, masks, target, voice, known_voice, (4, 5), cue_prob=1.0, kinds=(kind,)
        )
        assert cued.tolist() == [1, 0, -1]
        assert cues.kind.tolist() == [KINDS.index(kind)] * 2 + [0]
        boxes = cues.box[:2]
        if kind == "point":
            assert torch.equal(boxes[:, :2], boxes[:, 2:])
            assert ((boxes > exact[:, [0, 1] * 2]) & (boxes < exact[:, [2, 3] * 2])).all()
        else:
            slack = 0.0 if kind == "mask" else JITTER * 1.001
            assert (boxes - exact).abs().max() <= slack
            assert kind == "mask" or not torch.equal(boxes, exact)
