%%% The application's settings: one table with types, units and defaults, and the check at start.
-module(py_reactor_settings).

%% API
-export([check/0, check_values/1]).

-export_type([settings/0]).

-type settings() :: #{
    python := undefined | unicode:chardata(),
    python_path := [file:filename_all()],
    contexts := pos_integer(),
    max_connections := pos_integer(),
    linger_ms := non_neg_integer(),
    call_threads := pos_integer(),
    log_level := debug | info | warning | error | critical,
    slow_callback_ms := non_neg_integer() | infinity,
    event_handler := py_reactor_events:handler(),
    measurement_interval_ms := pos_integer() | infinity
}.

%% The longest time that the kernel and the BEAM's timers both take.
-define(LONGEST_MS, 16#7fffffff).

%% Key, default, what it must be, and what it is for.
table() ->
    [
        %% The python program, or the folder of a virtual environment. $PY_REACTOR_PYTHON comes
        %% first; if neither is set, $VIRTUAL_ENV/bin/python, then the program of the build.
        {python, undefined, fun is_program/1, "a path as string or binary"},
        %% More folders for sys.path, after the one of the package `erlang'.
        {python_path, [], fun is_folder_list/1, "a list of folders that exist"},
        %% Contexts of the default pool: each is a thread that serves connections. They share
        %% one GIL, so more of them serve no faster; they keep a callback that takes long from
        %% holding up all connections.
        {contexts, 1, within(1, 1024), "an integer from 1 to 1024"},
        %% Connections of one context; beyond it a handoff answers {error, overload}. The most is
        %% what Linux lets a process have in descriptors (fs.nr_open); room for a message about
        %% each is made when a context starts, some 30 bytes.
        {max_connections, 16384, within(1, 1048576), "an integer from 1 to 1048576"},
        %% Milliseconds that a connection is silent before the BEAM watches it; 0 for at once. The
        %% most is what epoll can wait.
        {linger_ms, 20, within(0, ?LONGEST_MS), "an integer from 0 to 2147483647, in milliseconds"},
        %% Threads for py:exec, py:eval and py:call: so many may run at the same time.
        {call_threads, 4, within(1, 256), "an integer from 1 to 256"},
        %% Python log records below this are not handed on.
        {log_level, info, fun is_level/1, "one of debug, info, warning, error and critical"},
        %% Milliseconds after which a callback that still runs is logged with its stack. A context
        %% that serves no connection in less time keeps the others waiting noticeably.
        {slow_callback_ms, 100, or_infinity(within(0, ?LONGEST_MS)),
            "an integer from 0 to 2147483647, in milliseconds, or infinity"},
        %% What is told of events; see docs/observability.md.
        {event_handler, undefined, fun py_reactor_events:is_handler/1,
            "undefined, a function with three arguments, or {Module, Function}"},
        %% Milliseconds between two measurement events of a context or listener. More than a hundred
        %% a second would cost more than they tell.
        {measurement_interval_ms, infinity, or_infinity(within(10, ?LONGEST_MS)),
            "an integer from 10 to 2147483647, in milliseconds, or infinity"}
    ].

%% @doc Reads all settings of the application, with defaults for those that are not set.
-spec check() -> {ok, settings()} | {error, {bad_setting, Key :: atom(), Explanation :: string()}}.
check() ->
    Set = maps:from_list(application:get_all_env(py_reactor)),
    case check_values(Set) of
        ok -> {ok, maps:merge(defaults(), Set)};
        {error, _} = Error -> Error
    end.

%% @doc Checks some settings.
-spec check_values(#{atom() => term()}) ->
    ok | {error, {bad_setting, Key :: atom(), Explanation :: string()}}.
check_values(Set) ->
    Bad = [
        {Key, "must be " ++ Wanted}
     || {Key, _, Check, Wanted} <- table(), is_map_key(Key, Set), not Check(map_get(Key, Set))
    ],
    Unknown = [{Key, "is not a setting"} || Key <- maps:keys(maps:without(maps:keys(defaults()), Set))],
    case Bad ++ lists:sort(Unknown) of
        [] -> ok;
        [{Key, Explanation} | _] -> {error, {bad_setting, Key, Explanation}}
    end.

defaults() ->
    maps:from_list([{Key, Default} || {Key, Default, _, _} <- table()]).

is_program(undefined) -> true;
is_program(Path) -> is_path(Path).

is_folder_list(Paths) ->
    is_list(Paths) andalso
        lists:all(fun(Path) -> is_path(Path) andalso filelib:is_dir(Path) end, Paths).

is_path(Path) when is_binary(Path) -> Path =/= <<>>;
is_path([_ | _] = Path) -> io_lib:char_list(Path);
is_path(_) -> false.

within(Least, Most) ->
    fun(N) -> is_integer(N) andalso N >= Least andalso N =< Most end.

or_infinity(Check) ->
    fun(Value) -> Value =:= infinity orelse Check(Value) end.

is_level(Level) -> lists:member(Level, [debug, info, warning, error, critical]).
