package etcd

import (
	"context"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quiet returns a zap logger for etcd that passes warnings and errors on to l; below that etcd talks to its developers. What
// etcd would end the process for ends only the goroutine that met it, once died was called.
func quiet(l *slog.Logger, died func()) *zap.Logger {
	end := ending(died)
	return zap.New(&core{log: l}, zap.WithFatalHook(end), zap.WithPanicHook(end))
}

type ending func()

// OnWrite implements zapcore.CheckWriteHook.
func (end ending) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {
	if end != nil {
		end()
	}
	runtime.Goexit()
}

type core struct{ log *slog.Logger }

var levels = map[zapcore.Level]slog.Level{zapcore.WarnLevel: slog.LevelDebug, zapcore.ErrorLevel: slog.LevelWarn}

// level maps etcd's levels to ours, one lower: its warnings ask nothing of a user.
func level(l zapcore.Level) slog.Level {
	if out, ok := levels[l]; ok {
		return out
	}
	return slog.LevelError
}

func (c *core) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && c.log.Enabled(context.Background(), level(l))
}

func (c *core) With(fields []zapcore.Field) zapcore.Core { return &core{c.log.With(attrs(fields)...)} }

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), level(e.Level), "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c *core) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		out = append(out, slog.Any(k, v))
	}
	return out
}
