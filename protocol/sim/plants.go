package sim

import (
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
)

// Plants are the bugs that are planted in the simulated clients: rules of the
// bypass, which is not the core's.
var Plants = []protocol.Plant{
	{Name: plantNoValidate, Rule: "an update by bypass is validated after the access"},
	{Name: plantNoValidateRead, Rule: "a read by bypass is validated after the access"},
	{Name: plantNoBusy, Rule: "a client inside an update is marked busy"},
	{Name: plantLiveLate, Rule: "a piece is journaled as live before the commit"},
	{Name: plantNoRing, Rule: "who releases a record that the dispatcher waits for hands it over"},
}

const (
	plantNoValidate     = "bypass-no-validate"
	plantNoValidateRead = "bypass-read-no-validate"
	plantNoBusy         = "bypass-no-busy"
	plantLiveLate       = "bypass-live-late"
	plantNoRing         = "bypass-no-ring"
)

func isLinkPlant(name string) bool {
	for _, p := range link.Plants {
		if p.Name == name && name != "" {
			return true
		}
	}
	return false
}

func isCorePlant(name string) bool {
	if isLinkPlant(name) {
		return false
	}
	for _, p := range Plants {
		if p.Name == name {
			return false
		}
	}
	return true
}

// AllPlants are the core's, the link's and the clients'.
func AllPlants() (all []protocol.Plant) {
	all = append(all, protocol.Plants[1:]...)
	for _, p := range link.Plants[1:] {
		all = append(all, protocol.Plant(p))
	}
	return append(all, Plants...)
}

// aims are mixes of faults for the bugs that random mixes seldom show.
var aims = map[string]func(m *Mix){
	"no-pass":             slowClients,
	plantNoBusy:           slowClients,
	plantLiveLate:         slowClients,
	plantNoValidate:       slowClients,
	plantNoValidateRead:   slowClients,
	"serve-no-lease":      zombies,
	"handle-no-lease":     zombies,
	"grant-after-promise": zombies,
	"no-margin":           func(m *Mix) { zombies(m); m.Drift = 0.03 },
	"no-clique":           func(m *Mix) { m.OneWay, m.Nodes = 4, max(3, m.Nodes) },
	"no-stickiness":       func(m *Mix) { m.OneWay, m.Nodes = 4, max(3, m.Nodes) },
	"resupply-removing":   func(m *Mix) { deaths(m); m.Policy, m.Loss = "never", 0.1 },
	"keep-provisional":    deaths,
	"alive-by-pnn":        deaths,
	"delete-gives-back":   func(m *Mix) { restarts(m); m.Policy = "never" },
	"ack-refused":         restarts,
	"old-ballot":          restarts,
	"old-recovered":       restarts,
	"old-incarnation":     restarts,
	"copy-without-want":   deaths,
	"cold-counter":        deaths,
	"promise-twice":       crowded,
	"carry-all":           func(m *Mix) { crowded(m); m.Warm = 8 },
	"drain-full":          func(m *Mix) { m.Drain = 4 },
	"no-event":            restarts,
	"no-table":            func(m *Mix) { m.Open, m.Warm, m.Crash = true, 4, 3 },
	"two-registrars":      func(m *Mix) { m.Open = true },
	"lock-forever":        arbitrated,
	"lock-forgets":        arbitrated,
	"cold-no-lock":        func(m *Mix) { arbitrated(m); m.File, m.Crash, m.Warm = 6, 4, 0 },
	"any-file":            func(m *Mix) { m.File, m.Cut, m.Crash = 6, 3, 2 },
	"abandon-first":       restarts,
	"parked-cut":          func(m *Mix) { restarts(m); m.Limits = few(func(l limits) bool { return l.parked == 1 }) },
	"moved-cut": func(m *Mix) {
		m.Keys, m.Policy, m.Limits = 40, "always", few(func(l limits) bool { return l.moved > 0 && l.moved < 60 && l.walks == 0 && l.batch > 0 })
	},
	"done-cut": func(m *Mix) {
		restarts(m)
		m.Policy = "never"
		m.Limits = few(func(l limits) bool { return l.dones == 1 })
	},
	"first-waiter": func(m *Mix) { m.Keys, m.Clients, m.Policy = 1, 3, "never" },
	"dead-give-up": func(m *Mix) { m.Kill, m.Keys, m.Clients = 5, 1, 3 },
}

// few finds small limits of a kind.
func few(kind func(l limits) bool) int {
	for i := 1; ; i++ {
		if m := (Mix{Limits: i}); kind(m.limits()) {
			return i
		}
	}
}

// slowClients stop inside their operations while nodes freeze.
func slowClients(m *Mix) {
	m.Stall, m.Warm, m.Crash, m.Cut, m.Keys, m.Clients, m.Nodes = 0.25, 3, 6, 3, 1, 3, max(3, m.Nodes)
}

// crowded stores.
func crowded(m *Mix) {
	m.Cap, m.Keys, m.Clients, m.Policy, m.Full, m.Nodes = 80, 4, 3, "always", 0, max(4, m.Nodes)
}

// arbitrated pairs that lose each other, and the lock.
func arbitrated(m *Mix) {
	m.Nodes, m.Arbiter, m.Cut, m.Pause, m.Crash, m.Warm, m.Keys, m.File = 2, true, 3, 6, 0, 2, 1, 0
}

// zombies wake up after their lease.
func zombies(m *Mix) {
	m.Pause, m.Cut, m.Keys, m.Nodes, m.Clients = 8, 2, 1, max(3, m.Nodes), 3
}

// deaths in short order, and joiners that flap.
func deaths(m *Mix) {
	m.Crash, m.Warm, m.Keys, m.Clients, m.Tail = 8, 3, 1, 3, 30*ms
}

// restarts with late messages.
func restarts(m *Mix) {
	m.Warm, m.Loss, m.Repeat, m.Tail, m.Keys, m.Clients, m.Policy = 8, 0.15, 0.1, 30*ms, 1, 3, "always"
}
