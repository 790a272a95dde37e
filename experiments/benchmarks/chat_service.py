"""A model service that answers a cold start's requests, with faults, and keeps its own account."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections import Counter

from experiments.benchmarks.stand_ins import Service, chat
from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.cold_start.mining import PLAIN_SYSTEM
from sensesearch_jax.cold_start.review import INSTRUCTION

HARD, WRONG, ILLOGICAL = 5, 11, 13  # every so manieth thing (two in five are hard)
INPUT_USD, OUTPUT_USD = 0.3, 2.5  # for a million tokens
# Shares of the faults; a late one costs the client its whole time-out.
FAULTS = {'status 503': 0.35, 'cut': 0.3, 'garbage': 0.25, 'late': 0.1}


def text_of(number: int) -> str:
    """The question about a thing."""
    return f'What is the code of thing {number}?'


def code_of(number: int) -> str:
    """The right answer."""
    return f'K{number * 7919 % 100_003:05d}'


def is_hard(number: int) -> bool:
    """Whether plain answers are wrong."""
    return number % HARD < 2


def replies(messages: list[dict], choices: int) -> list[str]:
    """The texts of all choices, by the conversation alone."""
    system = messages[0]['content']
    asked = json.dumps(messages[1]['content'])
    number = int(re.search(r'code of thing (\d+)', asked)[1])
    if system == PLAIN_SYSTEM:
        return ['K' if is_hard(number) else code_of(number)] * choices
    if system == INSTRUCTION:
        holds = number % ILLOGICAL != 0
        review = {'format': True, 'logic': holds, 'answer': True, 'why': 'Seen by the stand-in.'}
        return [json.dumps(review)]
    written = sum(message['role'] == 'assistant' for message in messages)
    action = (
        ImageCrop((0.1, 0.1, 0.6, 0.6)),
        TextSearch(f'code of thing {number}'),
        Answer(code_of(number + (number % WRONG == 0))),
    )[written]
    return [DEFAULT.render_action('I look for the code of the thing, step by step.', action)]


def chat_service(fault_share: float, delay_s: float) -> type[Service]:
    """The service; GET gives its account.

    Args:
        fault_share: of requests that get no whole reply.
        delay_s: seconds that every answer takes.
    """
    lock = threading.Lock()
    attempts: Counter[str] = Counter()
    account = {'requests': 0, 'usd': 0.0, 'usd_begun': 0.0, 'faults': Counter()}
    paid: Counter[str] = Counter()

    class Chat(Service):
        def do_POST(self) -> None:
            body = self.body()
            key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            with lock:
                attempts[key] += 1
                account['requests'] += 1
                draw = random.Random(f'{key} {attempts[key]}')
            time.sleep(delay_s)
            texts = replies(body['messages'], body.get('n', 1))
            prompt, written = 200 + 100 * len(body['messages']), 20 * len(texts)
            usd = (prompt * INPUT_USD + written * OUTPUT_USD) / 1e6
            fault = None
            if draw.random() < fault_share:
                fault = draw.choices(list(FAULTS), list(FAULTS.values()))[0]
            if fault == 'late':
                self.connection.recv(1)  # until the client has had enough
                self.close_connection = True
            elif fault == 'status 503':
                self.send(b'{"error": {"message": "busy"}}', 'application/json', 503)
            elif fault == 'garbage':
                self.send(b'<html>not now</html>', 'text/html')
            else:
                usage = {'prompt_tokens': prompt, 'completion_tokens': written}
                choices = [choice for text in texts for choice in chat(text)['choices']]
                answer = json.dumps({'choices': choices, 'usage': usage}).encode()
                self.send(answer, 'application/json', half=fault == 'cut')
            with lock:
                account['usd_begun'] += usd * (fault != 'status 503')
                account['faults'].update([fault] if fault else [])
                account['usd'] += usd * (not fault)
                paid[key] += not fault

        def do_GET(self) -> None:
            with lock:
                most = max(paid.values(), default=0)
                self.send(json.dumps(account | {'paid_most': most}).encode(), 'application/json')

    return Chat
