package api

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
)

// humaConfig describes the API as a whole.
func humaConfig() huma.Config {
	c := huma.DefaultConfig("Gantry", "1")
	c.Info.Description = "Native API of Gantry. A write is answered once it is durable, with the id of the deployment that carries " +
		"it out; GET /v1/events tells how it goes. Errors are problem details (RFC 9457), with the path of each bad field."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.CreateHooks = nil // no $schema fields in answers
	c.RejectUnknownQueryParameters = true
	c.Components.Schemas = registry()
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "The administrator's token, from the file that the server names when it starts."},
	}
	c.Tags = []*huma.Tag{
		{Name: "apps", Description: "Long-running groups of identical instances."},
		{Name: "instances", Description: "The copies of apps: what they do, print and use."},
		{Name: "deployments", Description: "The way from one version of an app to another."},
		{Name: "placement", Description: "What would fit where, and why something does not."},
		{Name: "sharing", Description: "Who may take how much: roles, pools, reservations and persistent volumes."},
		{Name: "nodes", Description: "The machines, and the images on them."},
		{Name: "cluster", Description: "The servers as a whole: who they are, who may join, and backups."},
		{Name: "server", Description: "The server itself."},
	}
	return c
}

func registry() huma.Registry {
	r := huma.NewMapRegistry("#/components/schemas/", func(t reflect.Type, hint string) string {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t {
		case reflect.TypeFor[huma.ErrorModel]():
			return "Problem"
		case reflect.TypeFor[huma.ErrorDetail]():
			return "ProblemField"
		case reflect.TypeFor[model.Usage]():
			return "Used" // client.Usage is what all use
		}
		return huma.DefaultSchemaNamer(t, hint)
	})
	r.RegisterTypeAlias(reflect.TypeFor[model.CPU](), reflect.TypeFor[cpuSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.Bytes](), reflect.TypeFor[bytesSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.Duration](), reflect.TypeFor[durationSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.Amount](), reflect.TypeFor[amountSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.GPU](), reflect.TypeFor[gpuSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.Units](), reflect.TypeFor[unitsSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[model.Release](), reflect.TypeFor[releaseSchema]())
	return r
}

// Quantities of the model read more forms than they write. These types stand in for them in the document.
type (
	cpuSchema      struct{}
	bytesSchema    struct{}
	durationSchema struct{}
	amountSchema   struct{}
	gpuSchema      struct{}
	unitsSchema    struct{}
	releaseSchema  struct{}
)

func either(number, pattern, description string, examples ...any) *huma.Schema {
	zero := 0.0
	return &huma.Schema{
		OneOf:       []*huma.Schema{{Type: number, Minimum: &zero}, {Type: huma.TypeString, Pattern: pattern}},
		Description: description,
		Examples:    examples,
	}
}

func (cpuSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeNumber, `^\s*[0-9.eE+-]+m?\s*$`, "Cores, or thousandths of one with m. Answers give a number.", 0.5, "250m")
}

func (bytesSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeInteger, `^\s*[0-9.eE+-]+\s*([KMGT]i|[kKMGT])?B?\s*$`,
		"Bytes, or an amount with a unit of 1024 (KiB, MiB, GiB, TiB) or 1000 (kB, MB, GB, TB). Answers give a string.", "256MiB", 1048576)
}

func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeNumber, `^\s*([0-9.]+(ns|us|µs|ms|s|m|h))+\s*$|^\s*[0-9.eE+-]+\s*$`, "Seconds, or a length of time with units. Answers give a string.", "1m30s", 10)
}

func (amountSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeInteger, `^\s*[0-9]+\s*%?\s*$`, "A count of instances, or a share of them in percent. Answers give a string.", "25%", 2)
}

func (gpuSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeNumber, `^\s*[0-9.eE+-]+\s*$`, "Devices: a whole number, or a share of one below 1. Answers give a number.", 2, 0.25)
}

func (unitsSchema) Schema(huma.Registry) *huma.Schema {
	return either(huma.TypeNumber, `^\s*[0-9.eE+-]+\s*$`, "An amount, to a thousandth. Answers give a number.", 2, 0.5)
}

func (releaseSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: `^[0-9]+\.[0-9]+$`, Description: "Minor version of Gantry.", Examples: []any{"0.1"}}
}

// document returns the OpenAPI document as indented JSON. Lists are never null in Gantry, which huma cannot know.
func document(o *huma.OpenAPI) ([]byte, error) {
	for _, s := range o.Components.Schemas.Map() {
		notNull(s)
	}
	for _, item := range o.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete} {
			if op != nil {
				notNullIn(op)
			}
		}
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func notNullIn(op *huma.Operation) {
	for _, p := range op.Parameters {
		notNull(p.Schema)
	}
	for _, r := range op.Responses {
		for _, m := range r.Content {
			notNull(m.Schema)
		}
	}
}

func notNull(s *huma.Schema) {
	if s == nil {
		return
	}
	if s.Type == huma.TypeArray {
		s.Nullable = false
		notNull(s.Items)
	}
	for _, p := range s.Properties {
		notNull(p)
	}
	if m, ok := s.AdditionalProperties.(*huma.Schema); ok {
		notNull(m)
	}
}
