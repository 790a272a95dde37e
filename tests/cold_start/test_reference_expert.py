"""Demonstrations by the references themselves."""

from answering_world import CHOICE, LOOK, environment, validate

from sensesearch_jax.cold_start.reference_expert import ReferenceExpert
from sensesearch_jax.cold_start.synthesis import synthesise


def test_it_says_the_answer_and_gives_it_and_rules_keep_it():
    whole = synthesise(LOOK, ReferenceExpert(), environment())
    assert (whole.answer, len(whole.turns)) == ('B', 1) and 'It is blue.' in whole.turns[0].text
    assert validate(whole) == []


def test_a_question_that_asks_for_a_fact_is_not_demonstrated_without_a_search():
    whole = synthesise(CHOICE, ReferenceExpert(), environment())
    assert validate(whole) == ['unseen_answer']
