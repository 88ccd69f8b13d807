package sim

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Small scripts in which every table and operation of Stable is used. AXE stands where
// the dispatcher that dies is chosen. Values have eight bytes, by which the checker tells
// them apart.
var axed = map[string]string{
	"local change": `
cluster 2 never
key a lmaster=0
AXE
go 0 store a value-01
run 400ms
go 0 append a value-02
run 400ms
do 1 fetch a is=value-01value-02
`,
	"remote change": `
cluster 2 never
key a lmaster=0
do 0 store a value-01
AXE
go 1 append a value-02
run 600ms
go 1 append a value-03
run 600ms
do 0 fetch a is=value-01value-02value-03
`,
	"remote lock": `
cluster 2 never
key a lmaster=0
do 0 store a value-01
AXE
do 1 lock a timeout=3000
do 1 storeunlock a value-02
do 0 fetch a is=value-02
do 1 lock a timeout=3000
do 1 unlock a
do 0 append a value-03
do 1 fetch a is=value-02value-03
`,
	"local lock": `
cluster 2 never
key a lmaster=0
do 0 store a value-01
AXE
do 0 lock a timeout=3000
do 0 storeunlock a value-02
do 1 fetch a is=value-02
`,
	"record moves": `
cluster 3 always
key a lmaster=2
do 0 store a value-01
AXE
go 1 append a value-02
run 600ms
go 0 append a value-03
run 600ms
do 2 fetch a is=value-01value-02value-03
`,
	"pieces": `
cluster 3 always
key p lmaster=2 pieces
do 0 piece p S
AXE
go 1 piece p S
run 600ms
do 0 remove p
go 1 remove p
run 600ms
do 2 fetch p is=
`,
	"pieces in order": `
cluster 3 never
key p lmaster=2 pieces
do 0 piece p S
AXE
do 1 piece p S
do 0 remove p
do 1 remove p
do 2 fetch p is=
`,
	"client dies": `
cluster 3 always
key p lmaster=2 pieces
key a lmaster=2
do 0 piece p S
do 1 lock a timeout=3000
AXE
go 1 piece p S
run 1ms
kill 1.1
kill 0.1
run 800ms
do 2 fetch p is=
do 2 append a value-09
`,
	"give up": `
cluster 3 always
key a lmaster=2
do 0 lock a timeout=3000
AXE
go 1 append a value-01 timeout=3000
run 10ms
giveup 1.1
do 0 unlock a
run 800ms
do 2 fetch a
`,
	"recovery": `
cluster 3 always
key a lmaster=2
key b lmaster=0
key p lmaster=2 pieces
do 0 store b value-01
do 1 store a value-01
do 1 piece p S
do 2 piece p S
AXE
lose REQUEST_DMASTER
go 2 append a value-02
run 100us
warm 2
boot 2
run 600ms
do 1 fetch a is=value-01value-02
do 2 fetch b is=value-01
`,
	"joiner": `
cluster 3 always
key a lmaster=2
do 1 store a value-01
cold 0
run 300ms
AXE
boot 0
run 600ms
do 0 fetch a is=value-01
`,
	"databases": `
cluster 3 always open
AXE
open 1 1 kv
open 0 1 kv
key a lmaster=2
do 1 store a value-01
do 0 fetch a is=value-01
`,
	"drain": `
cluster 3 never
key a lmaster=0
key b lmaster=1
do 0 store a value-01
do 0 store b value-02
AXE
drain 0
do 1 fetch a
do 2 fetch b
`,
}

// TestEveryStore: a dispatcher dies before each of its stores in a script, one run
// each, and is started again over what it left. All rules hold, and what was
// acknowledged is there. Every third store of all, from a drawn one on, with -short
// every ninth, and all with MAINZ_KILLS of 1,000 and more.
func TestEveryStore(t *testing.T) {
	stride, first := 3, firstSeed(t)
	if testing.Short() {
		stride = 9
	}
	if n, err := strconv.Atoi(os.Getenv("MAINZ_KILLS")); err == nil && n >= 1000 {
		stride = 1
	}
	t.Logf("every %d. store, from seed %d", stride, first)
	for name, script := range axed {
		t.Run(name, func(t *testing.T) {
			for node := range 3 {
				if node == 2 && strings.Contains(script, "cluster 2") {
					continue
				}
				n := 1
				for ; n < 2000; n++ {
					if (uint64(n)+first)%uint64(stride) != 0 {
						continue
					}
					transcript, failures := Script(strings.Replace(script, "AXE", fmt.Sprintf("axe %d %d", node, n), 1))
					for _, f := range failures {
						t.Errorf("node %d before store %d: %v", node, n, f)
					}
					if len(failures) > 0 && testing.Verbose() {
						t.Log(transcript)
					}
					if !strings.Contains(transcript, "dies before store") {
						break
					}
				}
				t.Logf("node %d: %d stores", node, n)
			}
		})
	}
}
