"The panel of the landing page: its rules are the package's, and hands, keys and fingers move it."
import json

import pytest
import torch
from amcl_suite.mcl import assignment, explorable, schedules
from amcl_suite.mcl.losses import squared_distance
from amcl_suite.mcl.theory import critical_temperature

SHAPES = ((4, 6), (3, 3), (2, 5), (1, 4), (6, 4), (5, 3))           # n_targets, n_hyps
PANEL = "document.querySelector('.amcl-explore').explorable"


@pytest.fixture
def show(browser):
    "Return a function that shows a page with a panel, and notes what goes wrong on it."
    contexts, errors = [], []
    def start(before="", panel=None, scheme="light", **options):
        contexts.append(browser.new_context(color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.set_content('<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">'
                         f'<style>:root {{ color-scheme: light dark; }}</style><body>{before}'
                         f'{(panel or explorable.explorable()).html}</body></html>')
        return page
    yield start
    for context in contexts: context.close()
    assert not errors


def random_costs(seed=0):
    "Random tables of costs of all shapes, in double precision."
    generator = torch.Generator().manual_seed(seed)
    return [5 * torch.rand(shape, generator=generator, dtype=torch.float64)
            for shape in SHAPES for _ in range(20)]


def asked(page, rule, costs, *options):
    "Return the weights that the script gives for many tables of costs."
    call = f"([tables, options]) => tables.map(costs => {PANEL}.rules.{rule}(costs, ...options))"
    found = page.evaluate(call, [[table.tolist() for table in costs], options])
    return [torch.tensor(weights, dtype=torch.float64) for weights in found]


RULES = [("wta", assignment.winner_takes_all, ()), ("uniform", assignment.uniform, ()),
         ("relaxed", assignment.relaxed, (.3,)), ("relaxed", assignment.relaxed, (0,)),
         ("top_n", assignment.top_n, (2,)), ("top_n", assignment.top_n, (1,)),
         ("amcl", assignment.annealed, (.5,)), ("amcl", assignment.annealed, (0,)),
         ("amcl", assignment.annealed, (1e-5,)), ("amcl", assignment.annealed, (1e6,)),
         ("pit", assignment.permutation, ()), ("transport", assignment.transport, ())]


@pytest.mark.parametrize("name, rule, options", RULES)
def test_the_rules_are_those_of_the_package(show, name, rule, options):
    tables = [table for table in random_costs() if name != "pit" or table.shape[0] <= table.shape[1]]
    for costs, weights in zip(tables, asked(show(), name, tables, *options)):
        torch.testing.assert_close(weights, rule(costs, *options), rtol=1e-9, atol=1e-9)


def test_every_rule_on_offer_is_compared():
    assert {name for name, *_ in RULES} | {"sampled"} == set(explorable.OFFERED)


def test_sampled_draws_by_the_annealed_shares(show):
    page, costs = show(), random_costs()[0]
    n, draws = 4000, f"([costs, n]) => Array.from({{ length: n }}, () => {PANEL}.rules.sampled(costs, 2))"
    drawn = torch.tensor(page.evaluate(draws, [costs.tolist(), n]), dtype=torch.float64)
    shares = assignment.annealed(costs, 2.)
    assert set(drawn.unique().tolist()) == {0., 1.} and bool((drawn.sum(-1) == 1).all())
    far = (drawn.mean(0) - shares).abs() / (shares * (1 - shares) / n).sqrt()
    assert float(far.max()) < 5                                     # standard errors
    edge = f"costs => {PANEL}.rules.sampled(costs, 2, () => 1 - 1e-17)"  # where rounding leaves nothing
    assert torch.tensor(page.evaluate(edge, costs.tolist())).sum(-1).tolist() == [1] * len(costs)
    hard = torch.tensor(page.evaluate(f"costs => {PANEL}.rules.sampled(costs, 0)", costs.tolist()))
    assert torch.equal(hard.double(), assignment.winner_takes_all(costs))


def test_a_step_of_learning_and_the_predicted_split(show):
    page, generator = show(), torch.Generator().manual_seed(1)
    for n_targets, n_hyps in SHAPES:
        targets, places = (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1
                           for n in (n_targets, n_hyps))
        weights = assignment.annealed(squared_distance(places, targets), .3)
        moved = page.evaluate(f"([x, y, q]) => {PANEL}.step(x, y, q, .1)",
                              [places.tolist(), targets.tolist(), weights.tolist()])
        path = explorable.descend(lambda costs, n: assignment.annealed(costs, .3), 1, targets, places, .1)
        torch.testing.assert_close(torch.tensor(moved, dtype=torch.float64), path[1])
        split = page.evaluate(f"y => {PANEL}.criticalTemperature(y)", targets.tolist())
        cov = torch.cov(targets.mT, correction=0).reshape(2, 2)
        assert split == pytest.approx(float(critical_temperature(cov)), rel=1e-9, abs=1e-12)


def test_cooling_is_the_exponential_schedule(show):
    page, cooling = show(), schedules.exponential(2., 10 ** (-1 / 120))
    found = page.evaluate(f"[0, 1, 120, 399].map(n => {PANEL}.temperature(100 - n / 4))")
    assert found == pytest.approx([cooling(n) for n in (0, 1, 120, 399)])
    assert page.evaluate(f"{PANEL}.temperature(0)") == 0


def learn(page, button, n_steps):
    "Press a button and take steps without waiting for the screen; pause; return what is told."
    page.get_by_role("button", name=button).click()
    page.evaluate(f"n => {{ for (let i = 0; i < n; i++) {PANEL}.advance({PANEL}.it); }}", n_steps)
    page.get_by_role("button", name="Pause").click()
    return page.locator(".told").inner_text()


def test_annealing_serves_all_targets_and_winner_takes_all_one_hypothesis(show):
    page = show()
    assert learn(page, "Cool", 600).endswith("4 of 6 hypotheses win a target. First split predicted at T = 0.72.")
    assert page.locator("output").inner_text() == "T = 0"
    shares = page.locator(".weights td").all_inner_texts()
    assert sorted(shares) == [""] + ["0"] * 20 + ["1"] * 4          # the corner, and one per target
    page.get_by_role("button", name="Start again").click()
    page.get_by_label("rule").select_option(label="winner-takes-all (WTA)")
    told = learn(page, "Train", 600)
    assert "1 of 6 hypotheses wins a target." in told and "Loss 0.5" in told
    assert page.get_by_role("button", name="Cool").is_disabled()
    assert "Paused. Step" in page.locator(".said[role=status]").inner_text()


def test_the_picture_moves_by_itself_after_train(show):
    page = show()
    at = "document.querySelector('.hypothesis').getAttribute('transform')"
    before = page.evaluate(at)
    page.get_by_role("button", name="Train").press("Enter")
    page.wait_for_function(f"{PANEL}.it.steps > 20")
    page.get_by_role("button", name="Pause").press("Space")
    steps = page.evaluate(f"{PANEL}.it.steps")
    assert page.evaluate(at) != before
    page.wait_for_timeout(100)
    assert page.evaluate(f"{PANEL}.it.steps") == steps              # and stands still when paused


def test_every_rule_can_be_chosen_and_trained(show):
    page = show()
    for name, label in explorable.OFFERED.items():
        page.get_by_role("button", name="Start again").click()
        page.get_by_label("rule").select_option(name)
        learn(page, "Train", 50)
        rows = page.evaluate(f"{PANEL}.it.weights.map(row => row.reduce((a, b) => a + b))")
        assert rows == pytest.approx([1] * 4), label


def test_arrow_keys_move_a_target_and_nothing_else(show):
    page = show("<div style='height:300vh'>before</div>")
    target = page.get_by_role("slider", name="Target A")
    target.focus()
    top = page.evaluate("scrollY")
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowUp"): page.keyboard.press(key)
    (x, y), *others = page.evaluate(f"{PANEL}.it.targets")
    assert (x, y) == pytest.approx((-.65, .41)) and others == [list(t) for t in explorable.TARGETS[1:]]
    assert target.get_attribute("aria-valuetext") == "-0.65 across, 0.41 up"
    assert page.evaluate("scrollY") == top                         # the page stays where it is
    for _ in range(60): page.keyboard.press("ArrowLeft")
    assert page.evaluate(f"{PANEL}.it.targets[0][0]") == -.9        # never out of the picture
    page.get_by_role("slider", name="temperature").focus()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text() == "T = 0"


def test_a_mouse_drags_a_target(show):
    page = show()
    box = page.locator(".target rect").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    plane = page.locator(".amcl-explore svg").bounding_box()
    page.mouse.move(plane["x"] + plane["width"] * .5, plane["y"] + plane["height"] * .25, steps=3)
    page.mouse.up()
    assert page.evaluate(f"{PANEL}.it.targets[1]") == pytest.approx([0, .55], abs=.02)
    page.mouse.move(0, 0)
    assert page.evaluate(f"{PANEL}.it.targets[1]") == pytest.approx([0, .55], abs=.02)


def test_a_finger_drags_a_target_on_a_phone(show):
    page = show(viewport=dict(width=360, height=740), has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    finger, box = page.context.new_cdp_session(page), page.locator(".target .hand").nth(2).bounding_box()
    assert min(box["width"], box["height"]) >= 44                  # large enough for a finger
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, points in (("Start", [(x, y)]), ("Move", [(x - 20, y + 10)]), ("Move", [(x - 60, y + 40)]), ("End", [])):
        touch = dict(type=f"touch{kind}", touchPoints=[dict(x=a, y=b) for a, b in points])
        finger.send("Input.dispatchTouchEvent", touch)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    plane = page.locator(".amcl-explore svg").bounding_box()["width"]
    start = explorable.TARGETS[2]
    expected = [start[0] - 132 / plane, start[1] - 88 / plane]
    assert page.evaluate(f"{PANEL}.it.targets[2]") == pytest.approx(expected, abs=.05)
    page.get_by_role("button", name="Cool").tap()
    page.wait_for_function(f"{PANEL}.it.steps > 5")


def test_a_still_picture_makes_room_where_scripts_run_only(show):
    panel = explorable.explorable(still="fig-still")
    still = '<figure id="fig-still"><p>still</p><figcaption>Figure 2: Three.</figcaption></figure>'
    page = show(still.replace("<p>still</p>", ""), panel)
    assert page.locator(".amcl-explore figcaption").inner_text().startswith("Figure 2: Hypotheses")
    page = show(still, panel)
    assert not page.get_by_text("still").is_visible() and page.locator(".amcl-explore").is_visible()
    page = show(still, panel, java_script_enabled=False)
    assert page.get_by_text("still").is_visible() and not page.locator(".amcl-explore").is_visible()


def test_two_panels_of_other_targets_stand_side_by_side(show):
    other = explorable.explorable("wta", targets=[(0., .5), (0., -.5)])
    page = show(explorable.explorable().html, other)
    assert page.locator(".amcl-explore:visible").count() == 2
    found = page.evaluate("[...document.querySelectorAll('.amcl-explore')].map(f => f.explorable.it.targets.length)")
    assert found == [4, 2]
    assert json.loads(json.dumps(found)) == page.evaluate(
        "[...document.querySelectorAll('table')].map(table => table.rows.length - 1)")
