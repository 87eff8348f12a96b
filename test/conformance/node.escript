#!/usr/bin/env escript
%% -*- erlang -*-
%%% node.escript SOCKET LINGER_MS: a node with py_reactor that obeys the suite, which listens at that
%%% Unix socket. The end of stdin stops it in good order.
-module(conformance_node).
-mode(compile).

%% Registered for Python
-export([serve/2, stop/2, restart/1, remove/1, info/1, hand_in/1]).

main([Socket, LingerMs]) ->
    ok = add_code_path(filename:join([root(), "_build", "default", "lib"])),
    application:set_env(py_reactor, linger_ms, list_to_integer(LingerMs)),
    {ok, _} = application:ensure_all_started(py_reactor),
    %% Interrupts system calls, and nothing else.
    ok = os:set_signal(sigusr2, handle),
    Functions = [{serve, 2}, {stop, 2}, {restart, 1}, {remove, 1}, {info, 1}, {hand_in, 1}],
    [ok = py:register_function(Name, fun ?MODULE:Name/Arity) || {Name, Arity} <- Functions],
    ok = py:add_path(filename:join([root(), "test", "conformance", "inside"])),
    {ok, none} = py:call(beam, open_channel, [unicode:characters_to_binary(Socket)]),
    eof = io:get_line(""),
    init:stop(),
    receive after infinity -> ok end.

add_code_path(Lib) ->
    case filelib:wildcard(filename:join([Lib, "*", "ebin"])) of
        [] ->
            io:format(standard_error, "py_reactor is not built: run rebar3 compile~n", []),
            halt(2);
        Paths ->
            code:add_pathsa(Paths)
    end.

root() ->
    filename:join([filename:dirname(filename:absname(escript:script_name())), "..", ".."]).

%%--------------------------------------------------------------------------------------------------
%% Registered for Python

%% Where a new listener listens: a port on the loopback address, or a path.
serve(Name, Options) ->
    {Where, Limits} = maps:take(<<"unix">>, maps:merge(#{<<"unix">> => none}, Options)),
    Endpoint =
        case Where of
            none -> #{ip => loopback};
            Path -> #{local => Path}
        end,
    Known = maps:fold(fun(Key, Value, All) -> All#{binary_to_atom(Key) => Value} end, Endpoint, Limits),
    %% What is left when it is removed is closed at once: `stop' is there to wait.
    case py_reactor:start_listener(Name, Known#{protocol => {told, Name}, shutdown => 0}) of
        {ok, _} -> address(Name, Where);
        {error, Reason} -> error(Reason)
    end.

address(Name, none) -> py_reactor:get_port(Name);
address(_Name, Path) -> Path.

%% Takes no more, lets connections end for so long, then closes.
stop(Name, WithinMs) ->
    {ok, _Left} = py_reactor:drain_listener(Name, WithinMs),
    ok.

restart(Name) ->
    ok = py_reactor:resume_listener(Name).

remove(Name) ->
    ok = py_reactor:stop_listener(Name).

info(Name) ->
    maps:with([active, accepted, closed, closed_by, timeouts, reads, bytes_in, bytes_out, callbacks, exceptions],
        py_reactor:listener_info(Name)).

hand_in(Number) ->
    case py_reactor_context:handoff(Number, #{}) of
        ok -> ok;
        {error, Reason} -> error(Reason)
    end.
