"""The English of docstrings, help, messages and pages keeps the rules of CONTRIBUTING.md."""

import prose
import pytest


def test_no_file_has_findings():
    findings = [str(finding) for of_file in prose.check_all().values() for finding in of_file]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(
    "sentence",
    [
        "The units are told on standard error.",
        "What is finished is kept.",
        "What was found is in the table.",
        "The cells and those of the others.",
        "It goes on where it was.",
        "Patches in\n    doubt are searched again.",
        "It has a thread of its own.",
    ],
)
def test_banned_phrases_are_found(sentence):
    assert len(list(prose.check_text(prose.Text(1, sentence, False)))) == 1


def test_plain_sentences_pass():
    text = "Interrupted runs resume. What is a patch? It is a crop of `told` pixels."
    assert list(prose.check_text(prose.Text(1, text, True))) == []


def test_sentences_of_more_than_25_words_are_found_in_counted_texts_only():
    words = " ".join(["word"] * 26) + "."
    assert len(list(prose.check_text(prose.Text(1, words, True)))) == 1
    assert list(prose.check_text(prose.Text(1, words, False))) == []
    assert list(prose.check_text(prose.Text(1, words.replace("word word.", "word."), True))) == []


def test_arguments_lists_and_shapes_do_not_make_a_sentence_long():
    half = " ".join(["word"] * 15)
    text = f"{half}\n\nArgs:\n    path: {half}\n    size (int): {half}\n    - {half}\n"
    assert list(prose.check_text(prose.Text(1, text, True))) == []
    shapes = f"{half} (n, y, x, b) (n, k) (t, y, x, b) (n, k, dim) {half[:20]}."
    assert list(prose.check_text(prose.Text(1, shapes, True))) == []


def test_python_texts_are_docstrings_help_and_messages():
    source = (
        '"""Module text here."""\n'
        'def f(x=Option(help="Help text here.")):\n'
        '    raise ValueError(f"{x}: message text here.")\n'
        'NOTE = "a note of words"\n'
        '"""Constant text here."""\n'
    )
    texts = {text.value: text.counted for text in prose.python_texts(source)}
    assert texts == {
        "Module text here.": True,
        "Help text here.": True,
        "x: message text here.": True,
        "a note of words": False,
        "Constant text here.": True,
    }


def test_markdown_code_is_not_checked():
    page = "Plain words here.\n\n```sh\nretrieve query # told\n```\n\nThe `told` word."
    assert [finding for text in prose.markdown_texts(page) for finding in prose.check_text(text)] == []
