%%% Bad input: the connection or the call pays, nothing else.
-module(bad_input_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [
    use/1, exec/1, eval/1, open/1, open/2, open/3, connect/1, accept/1, handoff/1, handoff/2, reset/1,
    await_closed/1, await_ledger/1, await_logged/1, logged/1, wait_until/2, wait_until/3
]).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    [
        {lingering, [], cases()},
        {parked_at_once, [], cases()}
    ].

cases() ->
    [echo_leaves_nothing_behind].

init_per_group(Group, Config) ->
    LingerMs = maps:get(Group, #{lingering => 20, parked_at_once => 0}),
    ok = reactor_case:start(#{linger_ms => LingerMs}),
    ok = py:add_path(?config(data_dir, Config)),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    reactor_case:begin_case(Config).

end_per_testcase(_Case, Config) ->
    reactor_case:end_case(Config).

echo_leaves_nothing_behind(Config) ->
    use("reactor_case.Echo"),
    Client = open(?config(listener, Config)),
    ok = reactor_case:echoes(Client, <<"hello">>),
    ok = gen_tcp:shutdown(Client, write),
    <<>> = await_closed(Client),
    await_ledger(1).
