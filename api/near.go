package api

import (
	"fmt"
	"strings"
)

// didYouMean returns "; did you mean X?" for the name that is nearest to what was written, or nothing when none is near.
func didYouMean(wrote string, names []string) string {
	best, least := "", max(2, len(wrote)/4)+1
	for _, name := range names {
		if len(name)-len(wrote) >= least || len(wrote)-len(name) >= least {
			continue
		}
		if d := distance(strings.ToLower(wrote), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance counts the letters to insert, delete, replace or swap with the next to make b of a.
func distance(a, b string) int {
	prev2, prev, row := []int(nil), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, make([]int, len(b)+1)
	}
	return prev[len(b)]
}
