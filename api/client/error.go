package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Error is an answer of the server that refuses a call.
type Error struct {
	Status int            // HTTP status
	Title  string         // the status in words
	Detail string         // one sentence
	Fields []ProblemField // what is wrong with the request, field by field
}

// Error returns the sentence and, when there are some, one line per bad field.
func (e *Error) Error() string {
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	if text == "" {
		text = fmt.Sprintf("the server answered with status %d", e.Status)
	}
	var b strings.Builder
	b.WriteString(text)
	for _, f := range e.Fields {
		b.WriteString("\n  ")
		if at := strings.TrimPrefix(strings.TrimPrefix(f.Location, "body"), "."); at != "" {
			b.WriteString(at + ": ")
		}
		b.WriteString(f.Message)
	}
	return b.String()
}

// readError makes an *Error of any answer, one that no Gantry wrote included.
func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode)}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what could be read is the best there is to show
	var p Problem
	if json.Unmarshal(b, &p) == nil && p.Status != 0 {
		e.Title, e.Detail, e.Fields = p.Title, p.Detail, p.Errors
		return e
	}
	if text := strings.TrimSpace(string(b)); text != "" && len(text) < 300 {
		e.Detail = text
	}
	return e
}
