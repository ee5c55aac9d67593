import pytest

from clone_rl.cli.bench_server import ServerError, bench_server


@pytest.mark.slow
def test_a_server_is_measured_with_one_client_and_with_several():
    found = bench_server(1.0, (1, 3), "performance")
    assert list(found) == ["1", "3"]
    for clients, row in found.items():
        assert row["requests"] >= 5 * int(clients)
        assert 0 < row["p50_s"] <= row["p99_s"]
        assert row["tokens_per_s"] == pytest.approx(16 * row["requests_per_s"])
    # One generation at a time: who asks beside two others waits for them.
    assert found["3"]["p50_s"] > 1.1 * found["1"]["p50_s"]


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why():
    with pytest.raises(ServerError, match="did not start: clone-rl: unknown controller 'nobody'"):
        bench_server(0.1, (1,), "nobody")
