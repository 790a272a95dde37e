"""Answers that lack something, or hold nothing: they say so, are counted, and are not believed for
long."""

import contextlib
import json
import time

import pytest
from fastapi.testclient import TestClient
from stand_ins import as_json, chat

from sensesearch_jax.agent import tool_client as agent_client
from tools_server.app import create_app
from tools_server.backends.text_opensearch import OpenSearchTextSearch
from tools_server.backends.text_serper import SerperTextSearch
from tools_server.config import parse_config
from tools_server.failures import ToolError
from tools_server.service import ToolService

PAGE = b'<html><body><p>The tower is 330 m high.</p></body></html>'
UNPAID = as_json(
    {'error': {'message': 'Incorrect API key provided: model-key.', 'code': 'invalid_api_key'}}, 401
)


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv('SERPER_API_KEY', 'serper-key')
    monkeypatch.setenv('MODEL_KEY', 'model-key')


@pytest.fixture
def serve(stand_in, tmp_path):
    """Starts a server whose text search asks the stand-in, by Serper with a model that summarises."""
    model = {'base_url': stand_in.url + '/v1', 'model': 'm', 'api_key_env': 'MODEL_KEY'}
    serper = {'backend': 'serper', 'base_url': stand_in.url, 'allow_private_pages': True,
              'summariser': model, 'limits': {'attempts': 1}}  # fmt: skip
    with contextlib.ExitStack() as stack:

        def start(mode='live', **ages):
            config = parse_config({
                'text_search': serper, 'mode': mode, 'images': {'directory': str(tmp_path / 'images')},
                'answers': {'path': str(tmp_path / 'a.sqlite')} | ages,
            })  # fmt: skip
            service = ToolService(config)
            service.load()
            stack.callback(service.close)
            return stack.enter_context(
                TestClient(create_app(service, config), base_url='http://localhost')
            )

        stand_in.answers |= {
            '/search': as_json(
                {
                    'organic': [
                        {'title': 'Tower', 'snippet': 'High.', 'link': stand_in.url + '/page'}
                    ]
                }
            ),
            '/page': lambda body: (200, PAGE, {'Content-Type': 'text/html'}),
            '/v1/chat/completions': chat('It is 330 m high.'),
        }
        yield start


def ask(server, query='How high is the tower?'):
    answer = server.post('/text_search', json={'query': query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_excerpts_in_place_of_summaries_are_said_counted_and_not_kept_for_long(serve, stand_in):
    stand_in.answers['/v1/chat/completions'] = UNPAID
    server = serve(partial_age_s=0.5)
    first = ask(server)
    assert first['results'][0]['text'] == 'High.'
    (reason,) = first['degraded']
    assert '401: Incorrect API key provided' in reason and 'model-key' not in reason
    again = ask(server)  # within its half second, it is still the answer, and still says so
    assert again['degraded'] == first['degraded'] and again['cache_hit']
    stand_in.answers['/v1/chat/completions'] = chat('It is 330 m high.')
    time.sleep(0.6)
    mended = ask(server)
    assert (mended['results'][0]['text'], mended['degraded']) == ('It is 330 m high.', [])
    time.sleep(0.6)
    assert ask(server)['cache_hit']
    assert server.get('/statistics').json()['calls']['text_search']['degraded'] == 2
    metrics = server.get('/metrics').text
    for line in ('tools_degraded_total{backend="serper",tool="text_search"} 2.0',
                 'tools_pages_total{tool="text_search",what="fetched"} 2.0',
                 'tools_pages_total{tool="text_search",what="summarised"} 1.0',
                 'tools_pages_total{tool="text_search",what="not_summarised"} 1.0'):  # fmt: skip
        assert line in metrics


def test_an_answer_without_a_page_says_so_and_is_asked_anew_unless_the_page_is_gone_for_good(
    serve, stand_in
):
    server = serve(partial_age_s=0.3)
    stand_in.answers['/page'] = lambda body: (404, b'')
    (reason,) = ask(server)['degraded']
    assert 'its page was not read: 127.0.0.1 answered with status 404' in reason
    results = [{'title': 'T', 'snippet': 'x', 'link': 'http://127.0.0.1:9/'}]
    stand_in.answers['/search'] = as_json({'organic': results})
    (reason,) = ask(server, 'another')['degraded']
    assert 'cannot be reached' in reason
    assert 'tools_pages_total{tool="text_search",what="failed"} 2.0' in server.get('/metrics').text
    time.sleep(0.4)
    assert ask(server)['cache_hit'] and not ask(server, 'another')['cache_hit']


def test_a_recording_replays_what_was_degraded_and_keeps_what_was_better(serve, stand_in):
    stand_in.answers['/v1/chat/completions'] = UNPAID
    first = ask(serve('record', partial_age_s=0.05))
    replayed = ask(serve('replay'))
    assert (replayed['results'], replayed['degraded']) == (first['results'], first['degraded'])
    stand_in.answers['/v1/chat/completions'] = chat('It is 330 m high.')
    time.sleep(0.1)
    better = ask(serve('record'))
    assert (
        better['degraded'] == []
        and ask(serve('replay'))['results'] == better['results'] != first['results']
    )


def test_nothing_found_is_not_believed_for_long(serve, stand_in):
    full, stand_in.answers['/search'] = stand_in.answers['/search'], as_json({'organic': []})
    server = serve(empty_age_s=0.3)
    assert ask(server)['results'] == [] and ask(server)['cache_hit']
    stand_in.answers['/search'] = full
    time.sleep(0.4)
    assert ask(server)['results'][0]['title'] == 'Tower'


@pytest.mark.parametrize(
    'answer, kind, words',
    [({'message': 'Not enough credits.'}, 'refused', 'Serper refused the request: Not enough credits'),
     ({'error': {'message': 'serper-key is blocked'}}, 'refused', 'Serper refused the request: … is blocked'),
     ({}, 'unavailable', 'without organic'), ({'statusCode': 500}, 'unavailable', 'without organic')],
)  # fmt: skip
def test_an_error_in_a_200_is_an_error_and_is_not_kept(serve, stand_in, answer, kind, words):
    server = serve()
    full, stand_in.answers['/search'] = stand_in.answers['/search'], as_json(answer)
    failure = server.post('/text_search', json={'query': 'tower'}).json()
    assert failure['kind'] == kind and words in failure['message']
    stand_in.answers['/search'] = full
    assert ask(server, 'tower')['results']


def search(stand_in, **fields):
    fields = {'backend': 'serper', 'base_url': stand_in.url} | fields
    return SerperTextSearch(parse_config({'text_search': fields}).text_search).search('tower', 2)


def test_what_google_says_itself_is_a_result(stand_in):
    box = {'title': 'Eiffel Tower / Height', 'answer': '330 m'}
    graph = {
        'title': 'Eiffel Tower',
        'type': 'Tower',
        'attributes': {'Opened': 'March 31, 1889', 'odd': [1]},
    }
    stand_in.answers['/search'] = as_json({'answerBox': box})
    assert [(p.title, p.text) for p in search(stand_in)] == [('Eiffel Tower / Height', '330 m')]
    stand_in.answers['/search'] = as_json({'knowledgeGraph': graph})
    (passage,) = search(stand_in)
    assert passage.title == 'Eiffel Tower' and 'Opened: March 31, 1889' in passage.text
    stand_in.answers['/search'] = as_json(
        {'answerBox': box, 'organic': [{'title': 'a'}, {'title': 'b'}]}
    )
    assert [p.title for p in search(stand_in)] == ['Eiffel Tower / Height', 'a']
    stand_in.answers['/search'] = as_json(
        {'answerBox': 7, 'knowledgeGraph': {'attributes': 7}, 'organic': []}
    )
    assert search(stand_in) == []


def test_an_index_that_answers_in_part_says_so(stand_in):
    from tools_server import degraded

    hits = {'hits': [{'_source': {'title': 'T', 'text': 'x'}, '_score': 1}]}
    stand_in.answers['/wiki/_search'] = as_json(
        {'_shards': {'total': 5, 'failed': 2}, 'hits': hits}
    )
    section = {'backend': 'opensearch', 'base_url': stand_in.url, 'index': 'wiki'}
    index = OpenSearchTextSearch(parse_config({'text_search': section}).text_search)
    with degraded.collected() as noted:
        assert len(index.search('q', 3)) == 1
    assert 'shards' in noted.reasons[0]


@pytest.mark.parametrize(
    'answer, words',
    [(as_json({'detail': [{'loc': ['body'], 'msg': 'too\nlong' + 'x' * 500}]}, 422), '422: too longxxx'),
     (as_json({'error': 'quota exceeded'}, 429), '429: quota exceeded'),
     (as_json({'message': 'overloaded'}, 503), '503: overloaded'),
     (lambda body: (500, b'<html>'), 'status 500'), (as_json([[[[[1]]]]], 403), 'status 403')],
)  # fmt: skip
def test_the_reason_that_a_service_gives_is_told(stand_in, answer, words):
    stand_in.answers['/search'] = answer
    with pytest.raises(ToolError) as error:
        search(stand_in, limits={'attempts': 1})
    assert (
        words in error.value.message
        and len(error.value.message) < 300
        and '\n' not in error.value.message
    )


def test_the_agent_reads_an_answer_that_is_degraded():
    answer = {
        'results': [{'title': 't', 'text': 'x', 'score': 1.0}],
        'degraded': ['some pages were not read'],
    }
    assert agent_client._passages(json.loads(json.dumps(answer)))[0].title == 't'
