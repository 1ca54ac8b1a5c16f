package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/test/robustness/history"
)

// summary checks the history, prints what happened, and returns the exit code.
func (r *run) summary() int {
	ops := r.log.Ops()
	var kept []history.Op // with values
	results := map[string]map[history.Result]int{}
	for _, o := range ops {
		what, _, _ := strings.Cut(o.Key, " ")
		name := string(o.Kind) + " " + what
		if o.Client < 0 {
			name = what
		} else {
			kept = append(kept, o)
		}
		if results[name] == nil {
			results[name] = map[history.Result]int{}
		}
		results[name][o.Result]++
	}
	checked := history.Check(kept)
	wrong := slices.Concat(r.wrong, r.census.wrong, checked.Violations)

	fmt.Printf("\nseed %d: %d calls, %d programs, %v\n", r.Seed, len(ops), len(r.census.all), r.now().Round(time.Second))
	for _, name := range slices.Sorted(maps.Keys(results)) {
		n := results[name]
		fmt.Printf("  %-14s %6d ok %5d refused %5d unknown\n", name, n[history.OK], n[history.Refused], n[history.Unknown])
	}
	fmt.Println("faults")
	for _, name := range slices.Sorted(maps.Keys(r.faults)) {
		fmt.Printf("  %-18s %4d\n", name, r.faults[name])
	}
	fmt.Println("checks")
	fmt.Printf("  linearizable: %d keys, %d writes, %d fresh reads; %d other reads no older than said\n", checked.Keys, checked.Writes, checked.Fresh, checked.Stale)
	fmt.Printf("  one at a time: %d programs; ended by none but their machine's power: those of %s\n", len(r.census.all), calmApp)
	fmt.Printf("  as asked for, after the faults: %d times, %s\n", len(r.heals), spread(r.heals))
	fmt.Printf("  no process, mount or control group left of what was removed: %d of %d machines\n", r.clean, len(r.agents))
	r.figures(ops)
	fmt.Printf("violations: %d\n", len(wrong))
	for _, w := range wrong {
		fmt.Println("- " + w)
	}
	if len(wrong) > 0 {
		return 1
	}
	return 0
}

// figures prints how long writes took when the leader was taken away.
func (r *run) figures(ops []history.Op) {
	again, under := map[string][]time.Duration{}, map[string][]time.Duration{}
	for _, h := range r.hits {
		a, u := recovery(h, ops)
		if a > 0 {
			again[h.name] = append(again[h.name], a)
		}
		if u > 0 {
			under[h.name] = append(under[h.name], u)
		}
	}
	if len(again) == 0 {
		return
	}
	fmt.Println("writes, from the moment that the leader was taken away")
	for _, name := range slices.Sorted(maps.Keys(again)) {
		fmt.Printf("  %-18s the first new one is taken after %s; all under way are answered after %s\n", name, spread(again[name]), spread(under[name]))
	}
}

// recovery returns when the first write that was sent after h was taken by a server that h did not hit, and when the last
// that was under way at such a server was answered, both counted from h. 0 means never, and none.
func recovery(h hit, ops []history.Op) (again, under time.Duration) {
	for i := range ops {
		o := &ops[i]
		switch {
		case o.Kind != history.Write || slices.Contains(h.out, o.Server):
		case o.Call >= h.at && o.Result == history.OK:
			if took := o.Return - h.at; again == 0 || took < again {
				again = took
			}
		case o.Call < h.at && o.Return > h.at:
			under = max(under, o.Return-h.at)
		}
	}
	return again, under
}

// spread says how durations are distributed.
func spread(list []time.Duration) string {
	if len(list) == 0 {
		return "(none)"
	}
	list = slices.Sorted(slices.Values(list))
	at := func(share float64) time.Duration {
		return list[int(share*float64(len(list)-1))].Round(10 * time.Millisecond)
	}
	return fmt.Sprintf("%v median, %v most (%d)", at(0.5), at(1), len(list))
}
