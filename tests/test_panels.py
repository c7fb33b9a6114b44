"Keys press the buttons of a panel in a browser, and only while it has the focus."
import pytest
from amcl_suite.core.panels import key_script, link_button, panel_mark


class Classes:
    "What a button of ipywidgets does with classes."
    def add_class(self, name): self.name = name
    def on_click(self, handler): pass


def markup(mark, names):
    "Return a panel of buttons that note what is pressed, with a field inside."
    made = {name: Classes() for name in names}
    for name, button in made.items(): link_button(button, name, print)
    buttons = "".join(f'<button class="{one.name}" onclick="pressed.push(\'{mark}:{name}\')">{name}</button>'
                      for name, one in made.items())
    return f'<div class="{mark}">{buttons}<input class="field"></div>'


@pytest.fixture
def page(browser):
    page = browser.new_page()
    yield page
    page.close()


def shown(page, panels, outside=""):
    "Show panels, mark -> (keys, options), and begin to listen."
    page.set_content(f'<script>window.pressed = []; window.others = []; document.addEventListener("keydown",'
                     f' event => others.push(event.key));</script>{outside}' + "".join(
                         markup(mark, dict.fromkeys(keys.values())) for mark, (keys, _) in panels.items()))
    for mark, (keys, options) in panels.items():
        page.evaluate(key_script(mark, keys, **options))
        page.wait_for_function(f'document.querySelector(".{mark}").tabIndex === 0')


def told(page): return page.evaluate("pressed.splice(0)")


def test_keys_press_their_buttons_and_nothing_else(page):
    mark = panel_mark()
    shown(page, {mark: ({"n": "not target", " ": "play", "?": "unsure", "arrowup": "forward"}, {})}, '<input id="out">')
    for key in ("n", "Space", "?", "ArrowUp", "N"): page.keyboard.press(key)
    names = ("not target", "play", "unsure", "forward", "not target")
    assert told(page) == [f"{mark}:{name}" for name in names]
    assert page.evaluate("others") in ([], ["Shift"])             # the page's own listeners heard none of them
    page.keyboard.press("x"), page.keyboard.press("Control+n")
    page.locator(".field").click(), page.keyboard.type("n")
    page.locator("#out").click(), page.keyboard.type("n")
    assert told(page) == []                                       # other keys, a field, another place
    assert page.locator(".field").input_value() + page.locator("#out").input_value() == "nn"


def test_a_click_gives_the_focus_back(page):
    mark = panel_mark()
    shown(page, {mark: ({"t": "target"}, {})}, '<input id="out">')
    page.locator("#out").click()
    page.locator(".amcl-do-target").click()
    page.keyboard.press("t")
    assert told(page) == [f"{mark}:target"] * 2


def test_a_key_that_is_held_counts_once_or_goes_on(page):
    for held, times in ((False, 1), (True, 4)):
        mark = panel_mark()
        shown(page, {mark: ({"f": "forward"}, dict(held=held))})
        for _ in range(4): page.keyboard.down("f")                # the first press and three repeats
        page.keyboard.up("f")
        assert told(page) == [f"{mark}:forward"] * times


def test_two_panels_do_not_hear_each_other(page):
    one, two = panel_mark(), panel_mark()
    shown(page, {one: ({"f": "forward"}, {}), two: ({"f": "forward"}, {})})
    for mark in (one, two):
        page.locator(f".{mark} .amcl-do-forward").click()
        page.keyboard.press("f")
        assert told(page) == [f"{mark}:forward"] * 2


def test_the_sound_is_played_again_from_its_beginning(page):
    mark = panel_mark()
    shown(page, {mark: ({" ": "play"}, dict(replay="play"))})
    page.evaluate(f"""() => {{ const sound = document.createElement("audio"); sound.currentTime = 1;
        sound.play = () => pressed.push("sound at " + sound.currentTime); document.querySelector(".{mark}").append(sound); }}""")
    page.keyboard.press("Space")
    assert told(page) == [f"{mark}:play", "sound at 0"]


def test_every_key_of_the_game_finds_its_button(page):
    "The walk's own keys, on buttons named as the panel names them."
    from amcl_suite.audition.play_panel import play_widget
    pytest.importorskip("ipywidgets", reason="ipywidgets isn't installed")
    for world in ("tiny", "spring"):                              # four actions, and six
        panel = play_widget(world)
        assert set(panel.keys().values()) <= set(panel.buttons)
        shown(page, {panel.mark: (panel.keys(), dict(held=True))})
        names = {"arrowup": "ArrowUp", "arrowdown": "ArrowDown", "arrowleft": "ArrowLeft", "arrowright": "ArrowRight", " ": "Space"}
        for key, name in panel.keys().items():
            page.keyboard.press(names.get(key, key))
            assert told(page) == [f"{panel.mark}:{name}"]
