"""Tables in Markdown."""

from cavmae.common.tables import markdown_table


def test_numbers_are_aligned_on_the_right_and_empty_cells_are_one_blank() -> None:
    rows = [["U-Net", "1.5", ""], ["", "2", "slow"]]
    assert markdown_table(["", "ms", "note"], rows, text_columns=(0, 2)).splitlines() == [
        "| | ms | note |",
        "|---|---:|---|",
        "| U-Net | 1.5 | |",
        "| | 2 | slow |",
    ]
