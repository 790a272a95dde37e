"""An SFT run whose workdir is in a store, and whose machine is lost with all that was on its disk."""

import json
import shutil
import signal
import time

import fsspec
import memorized
import pytest
import toy_forks
import toy_runs
from stores import STORES
from torn_runs import differences

from sensesearch_jax.runtime.storage import CHECKPOINT
from tools_server.launch import ToolServer


@pytest.fixture(scope='module')
def demonstrations(policy_folder, tmp_path_factory):
    folder, config = tmp_path_factory.mktemp('demonstrations'), memorized.config_of_sft()
    loaded = memorized.load(policy_folder, config)
    return memorized.write_memorized(folder, loaded, config.agent.tools, 4, 0)[0]


@pytest.mark.parametrize('scheme', ['gs', pytest.param('s3', marks=pytest.mark.slow)])
def test_the_next_machine_ends_with_the_policy_of_a_run_in_one_go(
    scheme, policy_folder, demonstrations, tmp_path, monkeypatch
):
    """Four steps with a checkpoint behind the second, killed behind the third."""
    output, scratch = tmp_path / 'output.txt', tmp_path / 'scratch'
    with (
        STORES[scheme]() as environment,
        ToolServer.start(toy_runs.TOOLS, tmp_path / 'tools') as server,
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
        store.mkdir('bucket')
        settings = (
            memorized.FEW_STEPS
            | {'sft.batch': 1, 'sft.micro_batch': 1, 'scratch': scratch}
            | {'sft.data': demonstrations, 'tools.url': server.url}
        )

        def start(name, **more):
            (process,) = toy_forks.start(
                f'{scheme}://bucket/{name}',
                policy_folder,
                settings,
                output,
                config='sft',
                TOY_PUSH_S='0.2',
                **environment,
                **more,
            )
            return process

        def end(process, code=0):
            process.join(120)
            assert process.exitcode == code, output.read_text()[-3000:]

        def in_store(name):
            store.invalidate_cache()
            path = f'bucket/torn/{name}'
            return store.cat_file(path).decode() if store.exists(path) else ''

        end(start('whole'))
        process = start('torn', TOY_STEPS='3')
        while not (
            in_store(f'sft/checkpoints/2/{CHECKPOINT}') and '"step": 3' in in_store('metrics.jsonl')
        ):
            assert process.exitcode is None, output.read_text()[-3000:]
            time.sleep(0.05)
        process.kill()
        end(process, -signal.SIGKILL)
        made = in_store('metrics.jsonl').splitlines()
        shutil.rmtree(scratch)
        end(start('torn'))
        store.invalidate_cache()
        lines = in_store('metrics.jsonl').splitlines()
        assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4]
        assert lines[:2] == made[:2] and lines[2] != made[2]  # the third step was made again
        addresses = (f'{scheme}://bucket/{name}' for name in ('torn', 'whole'))
        assert not differences(tmp_path, *addresses, 'sft')
