package link

// plant is one rule of the link left out on purpose, so that the simulator can show
// that its checkers see it. Production never sets one.
type plant uint8

const (
	plantNone plant = iota
	plantHole
	plantRefusedWindow
	plantNoPump
	plantNoAckTimer
	plantDropCancelled
	plantLastFragment
	plantKeepParts
	plantNullLost
	plantHeldForever
	plantCount
)

// Plant is a planted bug: its name and the rule it leaves out.
type Plant struct{ Name, Rule string }

// Plants lists the bugs that Config.Plant turns on.
var Plants = [plantCount]Plant{
	plantHole:          {"link-hole", "a refused CONTROL message leaves no hole in the sequence"},
	plantRefusedWindow: {"link-refused-window", "a refusal moves the window"},
	plantNoPump:        {"link-no-pump", "an acknowledgement lets go what waits for the window"},
	plantNoAckTimer:    {"link-no-ack-timer", "an acknowledgement that finds no company goes by itself"},
	plantDropCancelled: {"link-drop-cancelled", "a CONTROL message that is cancelled keeps its place in the sequence"},
	plantLastFragment:  {"link-last-fragment", "a last fragment that could not be handled is taken again"},
	plantKeepParts:     {"link-keep-parts", "a message that is handled is no longer put together"},
	plantNullLost:      {"link-null-lost", "a cancelled message is repeated like any other"},
	plantHeldForever:   {"link-once", "what could not be handled is not taken for a repeat when it comes again"},
}

func plantByName(name string) plant {
	for i := range Plants {
		if name != "" && Plants[i].Name == name {
			return plant(i)
		}
	}
	if name != "" {
		panic("link: no planted bug is called " + name)
	}
	return plantNone
}
