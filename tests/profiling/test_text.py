"""The built-in text, users' texts, and the pass key, through a byte-level tokenizer made here."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from quantadvisor.documents import BadInput
from quantadvisor.profiling import text


def tokenizer_folder(folder: Path, bos: bool = False) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path / "plain")


def decoded(folder: Path, tokens: list[int]) -> str:
    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens))


def test_evaluation_tokens_are_the_start_of_the_text(folder: Path) -> None:
    tokens, source = text.evaluation_tokens(folder, 500)
    assert (tokens.shape, tokens.dtype.name) == ((500,), "int64")
    assert source.licence == "PSF-2.0"
    assert len(source.sha256) == 64
    assert (tokens == text.evaluation_tokens(folder, 900)[0][:500]).all()
    shown = decoded(folder, tokens.tolist())
    assert shown.count(" ") > 60
    assert "::=" not in shown


def test_a_bos_leads_every_sequence(tmp_path: Path, folder: Path) -> None:
    led = tokenizer_folder(tmp_path / "bos", bos=True)
    assert text.evaluation_tokens(led, 64)[0][0] == 0
    assert (text.evaluation_tokens(led, 64)[0][1:] == text.evaluation_tokens(folder, 63)[0]).all()
    assert (text.calibration_tokens(led, 5, 32)[0][:, 0] == 0).all()


def test_the_halves_are_disjoint(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    halves = [set(text.builtin_paragraphs(half)) for half in ("calibration", "evaluation")]
    assert not halves[0] & halves[1]
    assert text.shared_passages(*("\n\n".join(text.builtin_paragraphs(h)) for h in ("calibration", "evaluation"))) < 0.02
    assert len(tokenizer.encode("\n\n".join(halves[1])).ids) > 90_000


@pytest.mark.parametrize(("samples", "length"), [(1, 16), (3, 7), (128, 1024)])
def test_calibration_windows(folder: Path, samples: int, length: int) -> None:
    tokens, _ = text.calibration_tokens(folder, samples, length)
    assert (tokens.shape, tokens.dtype.name) == ((samples, length), "int64")
    assert len({tuple(row) for row in tokens.tolist()}) == samples


def test_a_users_text(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Ein Text über Öl. " * 50, encoding="utf-8")
    tokens, source = text.evaluation_tokens(folder, 100, file)
    assert decoded(folder, tokens[:18].tolist()) == "Ein Text über Öl"
    assert (source.name, source.licence) == (str(file), "the user's")


def test_a_users_text_that_is_too_short(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Hello.")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(BadInput, match=r"quality.text .*too short: 6 tokens, 100 needed"):
        text.evaluation_tokens(folder, 100, file)
    with pytest.raises(BadInput, match=r"calibration.text .*too short: 0 tokens"):
        text.calibration_tokens(folder, 4, 32, empty)
    with pytest.raises(BadInput, match=r"quality.text .*too short: 0 tokens"):
        text.evaluation_tokens(folder, 100, empty)
    with pytest.raises(BadInput, match=r"calibration.text .*too short: 6 tokens, 4 samples of 32 need 35"):
        text.calibration_tokens(folder, 4, 32, file)


def test_calibrating_on_what_is_evaluated_is_refused(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.txt"
    both.write_text("\n".join(text.builtin_paragraphs("evaluation")[:400]))
    with pytest.raises(BadInput, match=r"evaluation text's passages"):
        text.calibration_tokens(folder, 4, 32, both)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(text.builtin_paragraphs("calibration")[:40]))
    assert text.calibration_tokens(folder, 4, 32, both, other)[0].shape == (4, 32)
    with pytest.raises(BadInput, match="100%"):
        text.calibration_tokens(folder, 4, 32, other, other)


def test_what_is_judged_first_counts_alone(folder: Path, tmp_path: Path) -> None:
    """All that the first tokens are judged on, and little of the whole."""
    judged, mine = tmp_path / "judged.txt", tmp_path / "mine.txt"
    words = [f"word{i}" for i in range(40_000)]
    judged.write_text(" ".join(words))
    mine.write_text(" ".join(words[:3000]))
    assert text.shared_passages(mine.read_text(), judged.read_text()) < text.LARGEST_SHARED
    with pytest.raises(BadInput, match=r"100% of the evaluation text's passages .*of its first 2,048 words"):
        text.calibration_tokens(folder, 4, 32, mine, judged)
    mine.write_text(" ".join(words[20_000:23_000]))
    assert text.calibration_tokens(folder, 4, 32, mine, judged)[0].shape == (4, 32)


def test_shared_passages_counts_thirteen_words_in_a_row() -> None:
    words = [f"word{i}" for i in range(26)]
    assert text.shared_passages(" ".join(words), "\n".join(words).upper()) == 1
    assert text.shared_passages(" ".join(words[:12]), " ".join(words[:12])) == 0
    assert text.shared_passages(" ".join(words[:13]), " ".join(words)) == pytest.approx(1 / 14)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_text_that_cannot_be_read(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=r"calibration.text .*(not UTF-8 at byte 0|no such file)"):
        text.calibration_tokens(folder, 1, 10, file)
    with pytest.raises(BadInput, match=r"quality.text .*(not UTF-8 at byte 0|no such file)") as caught:
        text.evaluation_tokens(folder, 10, file)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no tokenizer.json"):
        text.evaluation_tokens(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="not a tokenizer"):
        text.evaluation_tokens(tmp_path, 10)


@pytest.mark.parametrize("context", [300, 512, 200_000])
def test_the_pass_key_prompt_has_exactly_its_length(folder: Path, context: int) -> None:
    prompt, answer = text.passkey_prompt(folder, context, "40917")
    assert prompt.shape == (context,)
    assert decoded(folder, answer.tolist()) == " 40917"
    shown = decoded(folder, prompt.tolist())
    assert shown.index("40917") < 200
    assert shown.endswith("the secret pass key of the door is")
    with pytest.raises(BadInput, match="cannot hold a pass key"):
        text.passkey_prompt(folder, 20)
