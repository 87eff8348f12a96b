%%% The options of a listener: one table with types, units and defaults, and the check at the door.
-module(py_reactor_listener_options).

%% API
-export([check/1, name/1]).

-export_type([options/0, checked/0, protocol/0, kwargs/0, address/0, slow_consumer/0]).

-type address() ::
    inet:ip_address() | any | loopback | {local, Path :: file:filename_all()}.

-type kwargs() :: #{atom() | binary() => py:value()}.

-type protocol() ::
    {Module :: py:name(), Name :: py:name()}
    | {Module :: py:name(), Name :: py:name(), kwargs()}.

-type slow_consumer() :: drop_old | drop_new | {buffer, Messages :: pos_integer()} | disconnect.

-type options() :: #{
    ip => address(),
    local => file:filename_all(),
    port => inet:port_number(),
    backlog => pos_integer(),
    reuseport => boolean(),
    num_acceptors => pos_integer(),
    max_connections => non_neg_integer() | infinity,
    protocol => protocol(),
    contexts => all | [py_reactor_context:context(), ...],
    nodelay => boolean(),
    idle_timeout => pos_integer() | infinity,
    handshake_timeout => pos_integer() | infinity,
    write_timeout => pos_integer() | infinity,
    high_water => pos_integer(),
    low_water => non_neg_integer(),
    slow_consumer => slow_consumer(),
    info => #{atom() | binary() => py:value()},
    shutdown => timeout() | brutal_kill
}.

-type checked() :: #{
    endpoint := {tcp, inet:ip_address(), inet:port_number()} | {local, binary()},
    protocol := undefined | {Module :: py:name(), Name :: py:name(), kwargs()},
    atom() => term()
}.
%% All options, with defaults for those that were not given.

%% The longest time that fits a timer of the VM.
-define(MAX_MS, 16#ffffffff).
-define(MAX_BYTES, 16#7fffffff).

%% The most that `info' may take, in the external term format: as that of a handoff.
-define(MAX_INFO_BYTES, 65536).

%% Key, default, and what it must be.
table() ->
    [
        %% Where to listen. `local' is another way to say `ip => {local, Path}'.
        {ip, any, fun is_address/1},
        {local, none, fun is_path/1},
        %% 0 for one that the kernel chooses.
        {port, 0, within(0, 65535)},
        %% Connections that the kernel holds until they are accepted; net.core.somaxconn is its bound.
        {backlog, 1024, within(1, ?MAX_BYTES)},
        {reuseport, false, fun is_boolean/1},
        %% One accepts some 100,000 connections a second. Each more is woken for every connection.
        {num_acceptors, 1, within(1, 1024)},
        %% Contexts have bounds of their own.
        {max_connections, infinity, fun is_count/1},
        {protocol, undefined, fun is_protocol/1},
        %% `all' are those of the default pool.
        {contexts, all, fun is_contexts/1},
        {nodelay, true, fun is_boolean/1},
        %% Milliseconds. Silence is no fault of a connection, a peer that takes nothing is: web
        %% servers wait a minute for it.
        {idle_timeout, infinity, fun is_timeout/1},
        {handshake_timeout, infinity, fun is_timeout/1},
        {write_timeout, 60000, fun is_timeout/1},
        %% Bytes to be sent: as Python's asyncio has them.
        {high_water, 65536, within(1, ?MAX_BYTES)},
        {low_water, 16384, within(0, ?MAX_BYTES)},
        {slow_consumer, {buffer, 1024}, fun is_slow_consumer/1},
        {info, #{}, fun is_info/1},
        %% How long a listener that is stopped waits for its connections: as OTP does for a worker.
        {shutdown, 5000, fun is_shutdown/1}
    ].

%% @doc Checks the options, fills in what was left out, and brings what can be said in two ways into one form.
-spec check(options()) -> {ok, checked()} | {error, {bad_option, Key :: term()}}.
check(Options) when is_map(Options) ->
    Known = [Key || {Key, _, _} <- table()],
    Bad = [
        Key
     || {Key, _, Check} <- table(), is_map_key(Key, Options), not Check(map_get(Key, Options))
    ],
    case Bad ++ lists:sort(maps:keys(maps:without(Known, Options))) of
        [] -> check_together(maps:merge(defaults(Options), Options));
        [Key | _] -> {error, {bad_option, Key}}
    end;
check(_) ->
    error(badarg).

%% @doc A name of Python's as a binary.
-spec name(py:name()) -> binary().
name(Name) when is_atom(Name) -> atom_to_binary(Name);
name(Name) -> unicode:characters_to_binary(Name).

%% A high water mark that is lower than the default of the low one brings its own.
defaults(Options) ->
    Defaults = maps:from_list([{Key, Default} || {Key, Default, _} <- table()]),
    case Options of
        #{high_water := High} -> Defaults#{low_water := min(High div 2, map_get(low_water, Defaults))};
        _ -> Defaults
    end.

check_together(#{low_water := Low, high_water := High}) when Low >= High ->
    {error, {bad_option, low_water}};
check_together(#{ip := Ip, local := Path}) when Path =/= none, Ip =/= any, Ip =/= {local, Path} ->
    {error, {bad_option, local}};
check_together(#{local := Path} = Options) when Path =/= none ->
    check_local(Path, Options);
check_together(#{ip := {local, Path}} = Options) ->
    check_local(Path, Options);
check_together(#{ip := Ip, port := Port} = Options) ->
    {ok, complete({tcp, ip(Ip), Port}, Options)}.

%% As in gen_tcp: a path has port 0.
check_local(Path, #{port := 0} = Options) ->
    {ok, complete({local, path(Path)}, Options)};
check_local(_Path, _Options) ->
    {error, {bad_option, port}}.

complete(Endpoint, #{protocol := Protocol} = Options) ->
    (maps:without([ip, port, local], Options))#{endpoint => Endpoint, protocol := named(Protocol)}.

ip(any) -> {0, 0, 0, 0};
ip(loopback) -> {127, 0, 0, 1};
ip(Ip) -> Ip.

named(undefined) -> undefined;
named({Module, Name}) -> {Module, Name, #{}};
named({_Module, _Name, _Kwargs} = Protocol) -> Protocol.

%%--------------------------------------------------------------------------------------------------

is_address(any) -> true;
is_address(loopback) -> true;
is_address({local, Path}) -> is_path(Path);
is_address(Ip) -> inet:is_ip_address(Ip).

is_path(Path) -> is_text(Path, fun path/1).

is_protocol({Module, Name}) -> is_name(Module) andalso is_name(Name);
is_protocol({Module, Name, Kwargs}) -> is_protocol({Module, Name}) andalso is_info(Kwargs);
is_protocol(_) -> false.

is_name(Name) -> is_text(Name, fun name/1).

is_text(Text, Convert) when is_atom(Text); is_binary(Text); is_list(Text) ->
    try Convert(Text) of
        Binary -> is_binary(Binary) andalso Binary =/= <<>>
    catch
        error:_ -> false
    end;
is_text(_, _) ->
    false.

path(Path) when is_binary(Path) -> Path;
path(Path) when is_list(Path) -> unicode:characters_to_binary(Path, unicode, file:native_name_encoding()).

is_contexts(all) -> true;
is_contexts([_ | _] = Contexts) ->
    is_list_of(fun(C) -> is_pid(C) orelse (is_atom(C) andalso C =/= undefined) end, Contexts);
is_contexts(_) -> false.

is_list_of(_Check, []) -> true;
is_list_of(Check, [Item | Items]) -> Check(Item) andalso is_list_of(Check, Items);
is_list_of(_Check, _Improper) -> false.

is_count(infinity) -> true;
is_count(Count) -> is_integer(Count) andalso Count >= 0 andalso Count =< ?MAX_BYTES.

is_timeout(infinity) -> true;
is_timeout(Ms) -> (within(1, ?MAX_MS))(Ms).

is_shutdown(brutal_kill) -> true;
is_shutdown(0) -> true;
is_shutdown(Ms) -> is_timeout(Ms).

is_slow_consumer({buffer, Messages}) -> (within(1, ?MAX_BYTES))(Messages);
is_slow_consumer(Policy) -> lists:member(Policy, [drop_old, drop_new, disconnect]).

is_info(Info) when is_map(Info) ->
    lists:all(fun(Key) -> is_atom(Key) orelse is_binary(Key) end, maps:keys(Info)) andalso
        erlang:external_size(Info) =< ?MAX_INFO_BYTES;
is_info(_) ->
    false.

within(Least, Most) ->
    fun(N) -> is_integer(N) andalso N >= Least andalso N =< Most end.
