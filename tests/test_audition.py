"Audition as others use it: through Gymnasium's registry, and with somebody else's agent"
import gymnasium
import numpy as np
import pytest

from amcl_suite.audition.environment import IDS  # importing it registers the worlds


@pytest.mark.parametrize("name", IDS)
def test_made_by_name(name):
    env = gymnasium.make(name)
    first, info = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    for key in first: np.testing.assert_array_equal(first[key], again[key])
    assert env.observation_space.contains(first)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and np.isfinite(reward)
    env.close()


def test_vectors_and_recording():
    envs = gymnasium.make_vec("amcl_suite/OtoWorld-Tiny-v0", 3, vectorization_mode="vector_entry_point")
    one = gymnasium.make_vec("amcl_suite/OtoWorld-Tiny-v0", 3, vectorization_mode="sync")
    for vector in (envs, one): assert vector.reset(seed=5)[0]["features"].shape[0] == 3
    for _ in range(5):
        actions = np.array([0, 2, 1])
        a, b = envs.step(actions), one.step(actions)
        np.testing.assert_allclose(a[0]["features"], b[0]["features"], atol=1e-5)
        np.testing.assert_allclose(a[1], b[1], atol=1e-6)


def test_somebody_elses_agent():
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.wrappers.FlattenObservation(gymnasium.make("amcl_suite/OtoWorld-Tiny-v0"))
    model = stable_baselines3.DQN("MlpPolicy", env, learning_starts=50, seed=0, device="cpu")
    model.learn(200)
    action, _ = model.predict(env.reset(seed=1)[0], deterministic=True)
    assert env.action_space.contains(int(action))
