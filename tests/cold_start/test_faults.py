"""A whole cold start by served models, small: with faults, kills and budgets nothing is lost or paid
twice."""

from cold_start_faults import measure

KILLS = [('mined.jsonl', 0.2), ('expert.jsonl', 0.1), ('expert.jsonl', 0.4)]


def test_nothing_is_lost_or_paid_twice(tmp_path):
    found = measure(tmp_path, questions=30, threads=3, timeout_s=1.5, delay_s=0.05, kills=KILLS)
    assert found['kills'] == 3 and 0.15 < found['fault_share'] < 0.45
    assert found['lost'] == found['made_twice'] == 0
    assert found['most_paid_for_one_request'] == 1
    assert found['calls_beyond_budget'] == found['calls_not_in_ledger'] == 0
    assert -1e-9 <= found['usd_beyond_budget'] <= found['usd_of_the_dearest_call']
    # Money that may have been spent counts as spent, at the dearest price that is known by then: the
    # first attempts of the threads are priced too low.
    begun, known = found['usd_of_all_that_was_begun'], found['usd_of_the_ledger']
    assert found['usd_of_whole_replies'] < begun <= known + 3 * found['usd_of_the_dearest_call']
    assert found['hard'] == 12 == found['kept'] + found['rejected'] and found['rejected'] >= 1
