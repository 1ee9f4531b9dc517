"""What a scripted server was told to do wrong."""

from campaigns.demo.smtp_script import Misbehaviour, Script


def test_each_rule_is_counted_for_itself() -> None:
    script = Script()
    for _ in range(100):
        script.set(Misbehaviour(phase="dot", action="drop", times=1))
        assert script.at("dot") is not None, "a rule that was cleared has used it up"
        assert script.at("dot") is None
        script.clear()


def test_a_rule_that_is_used_up_gives_way_to_the_one_before() -> None:
    script = Script()
    script.set(Misbehaviour(phase="dot", action="drop"))
    script.set(Misbehaviour(phase="dot", action="stall", times=1))
    assert [rule.action for _ in range(3) if (rule := script.at("dot"))] == ["stall", "drop", "drop"]
